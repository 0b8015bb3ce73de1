"""What `skinvl concepts` does, one file a word: fit a dictionary, name its units, score concepts, suppress them."""
