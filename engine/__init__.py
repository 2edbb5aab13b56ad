"""Serving engine: api < bundle | datasets < registry < inference < routing < serving < cli."""

__version__ = "0.2.0"
