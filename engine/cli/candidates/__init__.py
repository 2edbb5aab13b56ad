"""`modelsat candidates`: list and change the candidates of a server."""

from engine.cli.candidates.command import add_arguments

__all__ = ["add_arguments"]
