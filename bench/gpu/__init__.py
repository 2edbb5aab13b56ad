"""Measure what a GPU makes of the scoring kernel, the forward pass and the server."""
