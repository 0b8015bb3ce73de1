"""A run answers: in a terminal, on a page, by an API."""
