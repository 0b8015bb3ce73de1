"""A recipe becomes an adapter."""
