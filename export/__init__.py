"""Export a merged checkpoint to a bundle that the engine serves."""
