"""Measures that agree with the leaderboards, significance, run files, benchmarks by name."""
