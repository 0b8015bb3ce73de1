"""A base, its adapter, and batches that encode an image once."""
