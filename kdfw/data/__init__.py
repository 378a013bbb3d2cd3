"""Data in the layouts people have, ingested once into memory-mapped columns."""
