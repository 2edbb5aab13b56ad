"""`modelsat catalog`: keep a file of candidates up to date."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from engine.api.candidate import Candidate, to_json
from engine.api.errors import InvalidInputError, Violation
from engine.api.text_files import read_utf8
from engine.cli.catalog.price_table import fetch_newest, read_wheel, renewed
from engine.cli.output import replace_text
from engine.registry.catalog import catalog_text, read_catalog

RESULTS = ("aptitude", "figures")  # fields that stay as they are written


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat catalog`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    summary = "renew prices, context windows and capabilities from LiteLLM's newest price table"
    update = actions.add_parser("update", help=summary, description=f"R{summary[1:]}.")
    update.add_argument("file", type=Path, help="JSON file of candidates, which is rewritten")
    update.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="wheel of LiteLLM (default: the newest one, downloaded with pip)",
    )
    update.add_argument("--dry-run", action="store_true", help="print the changes, write nothing")
    update.set_defaults(run=_update)


def _update(parsed: argparse.Namespace) -> None:
    candidates = read_catalog(parsed.file)
    if parsed.wheel and parsed.wheel.is_file():
        downloaded = datetime.datetime.fromtimestamp(parsed.wheel.stat().st_mtime, datetime.UTC)
        table = read_wheel(parsed.wheel, downloaded.date().isoformat())
    else:
        table = read_wheel(parsed.wheel, "") if parsed.wheel else fetch_newest()
    new = {c.id: renewed(c, table) for c in candidates}
    for candidate in candidates:
        if (after := new[candidate.id]) is None:
            print(f"{candidate.id}: no entry or no price in the table, left as it is")
        elif _prices(after) != _prices(candidate):
            print(f"{candidate.id}: {_prices(candidate)} -> {_prices(after)}")
    found = sum(c is not None for c in new.values())
    print(f"{found} of {len(candidates)} candidates renewed from {table.source}")
    if parsed.dry_run:
        return
    try:
        raw = json.loads(read_utf8(parsed.file))
    except ValueError as error:
        problem = "is not JSON, and only JSON can be rewritten; --dry-run prints the changes."
        raise InvalidInputError(Violation(str(parsed.file), problem)) from error
    holder = raw if isinstance(raw, dict) and "candidates" in raw else {"candidates": raw}
    items = holder["candidates"]
    items = items if isinstance(items, list) else [items]
    for item, candidate in zip(items, candidates, strict=True):
        if (after := new[candidate.id]) is not None:
            results = {k: item[k] for k in RESULTS if k in item}
            item.clear()
            item.update({k: v for k, v in to_json(after).items() if k not in RESULTS})
            item.update(results)
    replace_text(parsed.file, catalog_text(raw))
    print(f"wrote {parsed.file}")


def _prices(candidate: Candidate) -> str:
    prices = candidate.input_usd_per_million, candidate.output_usd_per_million
    return " / ".join("unknown" if p is None else f"${p:g}" for p in prices)
