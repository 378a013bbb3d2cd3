"""Trans-Encoder: bi-encoder and cross-encoder teach each other without labels (arXiv:2109.13059)."""
