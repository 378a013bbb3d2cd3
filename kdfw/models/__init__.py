"""Model types: thin wrappers over transformers (or torch, for small image nets) that give `Signals`."""
