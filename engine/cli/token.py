"""`modelsat token`: make a bearer token and its entry for the file of tokens."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from engine.serving.auth.tokens import ROLES, new_token


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `modelsat token`."""
    command.add_argument("--role", required=True, choices=ROLES)
    command.add_argument("--name", required=True, help="whose it is; the log names it on refusal")
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    text, entry = new_token(parsed.role, parsed.name)
    print(
        "the token, shown this once, and its entry for the file of --auth-tokens-file:",
        file=sys.stderr,
    )
    print(text)
    print(json.dumps(asdict(entry), ensure_ascii=False))
