"""A download, or a model's replies, becomes a prepared source."""
