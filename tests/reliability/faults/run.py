"""Faults on purpose: kill -9 in the middle of writes, and everything in
tests/reliability/faults/cases.py.

python -m tests.reliability.faults.run [--rounds 200] [--whole 20] [--postgres 20] [--seed 0]
[--only kill|cases]

A table for people; the last line of stdout is one JSON object. Exit status 1 where something was
not as docs/operations.md says.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.reliability.crash_recovery import Tally, folder_launches, kill_rounds
from tests.reliability.faults.case import Case
from tests.reliability.faults.cases import CASES
from tests.support.postgres import postgres


def run_kills(rounds: int, whole: int, on_postgres: int, seed: int) -> dict[str, Tally]:
    """`rounds` in all, `on_postgres` of them on PostgreSQL; `whole`: of the whole server."""
    tallies: dict[str, Tally] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        if on_sqlite := rounds - on_postgres:
            launches = folder_launches(str(folder / "s.sqlite"), folder, on_sqlite, whole)
            tallies["SQLite"] = kill_rounds(launches, seed)
        if on_postgres:
            with postgres() as database:
                launches = folder_launches(database.url(), folder, on_postgres, 0)
                tallies["PostgreSQL"] = kill_rounds(launches, seed)
    return tallies


def run_cases() -> list[Case]:
    """Every case in a folder of its own."""
    found = []
    for case in CASES:
        with TemporaryDirectory() as folder:
            found.append(case(Path(folder)))
        print(f"{found[-1].fault}: {'as documented' if found[-1].good else 'NOT as documented'}")
    return found


def show(tallies: dict[str, Tally], cases: list[Case]) -> None:
    """The tables for people."""
    console = Console(highlight=False, markup=False, width=130)
    if tallies:
        table = Table(title="kill -9 during writes")
        for heading in ("store", *asdict(Tally())):
            table.add_column(heading)
        for store, tally in tallies.items():
            table.add_row(store, *(str(v) for v in asdict(tally).values()))
        console.print(table)
    if cases:
        table = Table(title="other faults")
        for heading in ("fault", "seen", "as documented"):
            table.add_column(heading)
        for case in cases:
            table.add_row(case.fault, case.seen, "yes" if case.good else "NO")
        console.print(table)


def main() -> int:
    """Run, print, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__)
    add: Any = parser.add_argument
    add("--rounds", type=int, default=200, help="of kill -9")
    add("--whole", type=int, default=20, help="of them on the whole server, not only its store")
    add("--postgres", type=int, default=20, help="of them on PostgreSQL")
    add("--seed", type=int, default=0)
    add("--only", choices=("kill", "cases"))
    parsed = parser.parse_args()
    tallies, cases = {}, []
    if parsed.only != "cases":
        tallies = run_kills(parsed.rounds, parsed.whole, parsed.postgres, parsed.seed)
    if parsed.only != "kill":
        cases = run_cases()
    show(tallies, cases)
    good = all(c.good for c in cases) and not any(t.lost or t.partial for t in tallies.values())
    result = {
        "kill": {store: asdict(tally) for store, tally in tallies.items()},
        "cases": [asdict(case) for case in cases],
        "good": good,
    }
    print(json.dumps(result))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
