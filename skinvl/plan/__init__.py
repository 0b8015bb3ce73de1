"""What a recipe would do and take, before it runs."""
