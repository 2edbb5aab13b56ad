"""Inject faults: kill -9 during writes, and the cases of tests/reliability/faults/cases.py.

    python -m tests.reliability.faults.run [--rounds 200] [--whole-server 20] [--postgres 20]
        [--seed 0] [--only kill|cases]

Prints tables, and one JSON object as the last line of stdout. The exit status is 1 if anything
differs from docs/how-to/operate.md.
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

from tests.reliability.crash_recovery import Tally, kill_rounds, server_launches
from tests.reliability.faults.cases import CASES, Case
from tests.support.postgres import postgres


def run_kills(rounds: int, whole_server: int, on_postgres: int, seed: int) -> dict[str, Tally]:
    """Run `rounds` rounds, `on_postgres` of them on PostgreSQL; return a tally for each store.

    whole_server: how many rounds start the whole server rather than CandidateService alone.
    """
    tallies: dict[str, Tally] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        if on_sqlite := rounds - on_postgres:
            launches = server_launches(str(folder / "s.sqlite"), folder, on_sqlite, whole_server)
            tallies["SQLite"] = kill_rounds(launches, seed)
        if on_postgres:
            with postgres() as database:
                launches = server_launches(database.url(), folder, on_postgres, 0)
                tallies["PostgreSQL"] = kill_rounds(launches, seed)
    return tallies


def run_cases() -> list[Case]:
    """Run every case, each in an empty folder."""
    results = []
    for run_case in CASES:
        with TemporaryDirectory() as folder:
            case = run_case(Path(folder))
        print(f"{case.fault}: {'as documented' if case.passed else 'NOT as documented'}")
        results.append(case)
    return results


def show(tallies: dict[str, Tally], cases: list[Case]) -> None:
    """Print both tables."""
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
        for heading in ("fault", "observed", "as documented"):
            table.add_column(heading)
        for case in cases:
            table.add_row(case.fault, case.observed, "yes" if case.passed else "NO")
        console.print(table)


def main() -> int:
    """Run and print; return 1 if anything differs from the documentation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add: Any = parser.add_argument
    add("--rounds", type=int, default=200, help="rounds of kill -9 (default 200)")
    add("--whole-server", type=int, default=20, help="rounds that start the whole server")
    add("--postgres", type=int, default=20, help="rounds on PostgreSQL (default 20)")
    add("--seed", type=int, default=0, help="seed of the random writes")
    add("--only", choices=("kill", "cases"), help="run one of the two parts")
    parsed = parser.parse_args()
    tallies, cases = {}, []
    if parsed.only != "cases":
        tallies = run_kills(parsed.rounds, parsed.whole_server, parsed.postgres, parsed.seed)
    if parsed.only != "kill":
        cases = run_cases()
    show(tallies, cases)
    intact = not any(t.lost or t.partial for t in tallies.values())
    passed = intact and all(c.passed for c in cases)
    result = {
        "kill": {store: asdict(tally) for store, tally in tallies.items()},
        "cases": [asdict(case) for case in cases],
        "passed": passed,
    }
    print(json.dumps(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
