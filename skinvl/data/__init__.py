"""Conversations about images, whole: what a recipe's sources hold, and which rows may meet."""
