"""`modelsat adaptation`: see and steer what a server learned from outcomes."""

from engine.cli.adaptation.command import add_arguments

__all__ = ["add_arguments"]
