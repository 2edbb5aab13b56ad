"""`modelsat outcomes`: export what was recorded, and import what was measured elsewhere."""

from engine.cli.outcomes.command import add_arguments

__all__ = ["add_arguments"]
