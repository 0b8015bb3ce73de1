"""What to run, read strictly, and the folder of a run."""
