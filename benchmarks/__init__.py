"""Side-by-side timings against every other way to do the same work: ``python -m benchmarks``."""
