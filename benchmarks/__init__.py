"""Comparisons that back the README: `python -m benchmarks` runs every `bench_*.py` here."""
