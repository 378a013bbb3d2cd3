"""What training sees: which items, with which candidates, in each epoch."""
