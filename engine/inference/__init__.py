"""Turn prompts and candidate embeddings into probabilities."""
