"""Fine-tune vision-language models on dermatology image-question-answer data."""
