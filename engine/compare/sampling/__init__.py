"""Draw the instructions of a comparison from logs of past requests."""
