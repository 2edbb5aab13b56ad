"""Replay past requests: what other policies would have selected, at what cost and quality."""
