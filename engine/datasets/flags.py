"""The flag that names a data folder, for commands that read a single one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


class _Once(argparse.Action):
    """Store one value; a second one would silently replace it, so it is an error."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See argparse.Action."""
        earlier = getattr(namespace, self.dest, None)
        if earlier is not None:
            parser.error(f"{option_string} is given twice, {earlier} and {values}; give one.")
        setattr(namespace, self.dest, values)


def add_data(
    parser: argparse._ActionsContainer, description: str, *, required: bool = True
) -> None:
    """Add --data DIR, which may be given once."""
    parser.add_argument(
        "--data", type=Path, required=required, metavar="DIR", action=_Once, help=description
    )
