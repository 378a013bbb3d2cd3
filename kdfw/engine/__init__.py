"""Runs plans: artifacts, stages, the training loop."""
