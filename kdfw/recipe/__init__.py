"""From YAML, with line numbers, to a typed recipe and a plan of stages."""
