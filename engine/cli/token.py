"""`modelsat token`: create a bearer token and its entry for the server's tokens file."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from engine.serving.auth.tokens import ROLES, new_token


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat token`."""
    command.add_argument(
        "--role",
        required=True,
        choices=ROLES,
        help="what its owner may call: route instructions, read candidates, or everything",
    )
    command.add_argument(
        "--name", required=True, help="owner of the token, shown in access-denied logs"
    )
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    text, entry = new_token(parsed.role, parsed.name)
    explanation = "Token (shown only once), followed by its entry for --auth-tokens-file:"
    print(explanation, file=sys.stderr)
    print(text)
    print(json.dumps(asdict(entry), ensure_ascii=False))
