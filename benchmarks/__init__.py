"""Timings side by side with other programs that do the same work: ``python -m benchmarks``."""
