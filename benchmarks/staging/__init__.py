"""The parts of the benchmark of the staging planners (benchmarks.bench_staging)."""
