"""Measure a live LLM with an aptitude test: questions -> replies -> accuracies of a candidate."""
