"""Measures, benchmarks, run files, significance; the `evaluate` stage."""
