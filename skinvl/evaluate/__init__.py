"""A run is asked, and its predictions are written down."""
