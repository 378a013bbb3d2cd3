"""Published methods as plugins: one folder each, imported as `kdfw_plugins.<name>`."""
