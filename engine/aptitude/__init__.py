"""The aptitude test against a live LLM: questions -> answers -> figures of a candidate."""
