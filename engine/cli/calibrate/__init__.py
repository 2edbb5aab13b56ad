"""`modelsat calibrate`: find the willingness to pay that meets a target."""

from engine.cli.calibrate.command import add_arguments, print_recommendation

__all__ = ["add_arguments", "print_recommendation"]
