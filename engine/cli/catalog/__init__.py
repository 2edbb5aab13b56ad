"""`modelsat catalog`: keep prices, windows and capabilities of a catalog up to date."""

from engine.cli.catalog.command import add_arguments

__all__ = ["add_arguments"]
