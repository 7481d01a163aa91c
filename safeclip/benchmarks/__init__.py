"""Side-by-side measurements: what jobs/benchmark.py runs."""
