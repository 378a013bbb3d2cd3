"""Sources of teacher scores that are not trainable models, and the store that keeps scores by content."""
