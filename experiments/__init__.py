"""What people ask about p(x), answered by measurements: ``python -m experiments``."""
