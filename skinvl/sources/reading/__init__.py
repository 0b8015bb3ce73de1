"""What a model replied, read strictly and screened."""
