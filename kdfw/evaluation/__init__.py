"""Measures, benchmarks, run files, significance; the `evaluate` stage. Importing the package imports nothing heavy."""
