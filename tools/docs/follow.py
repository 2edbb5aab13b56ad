"""Follow a tutorial: run its blocks, unchanged, in an empty folder, and time them.

    python -m tools.docs.follow [docs/tutorial.md] [--repository ADDRESS] [--empty-cache]

This goes from `git clone` of the committed state to the end of the page, with nothing installed
before. pip uses the user's cache unless --empty-cache is given. It fails if a block fails. It
prints a line for each section: requests and failures that `tools.traffic` reported, and seconds.
The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.docs.doc_blocks import Block, BlockFailedError, blocks, require_free, shell
from tools.processes import ROOT

TARGET_S = 15 * 60
TRAFFIC = re.compile(r"^(\d+) requests, (\d+) failed", re.MULTILINE)


@dataclass
class Step:
    """A section of the page. requests, failed: of the traffic that it sent."""

    name: str
    requests: int = 0
    failed: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return it as a line of the table."""
        return f"{self.name:<50.50} {self.requests:>8} {self.failed:>6} {self.seconds:>8.1f}"


def environment(repository: str, cache: Path | None) -> dict[str, str]:
    """Return the caller's environment without variables and paths of this checkout."""
    prefixes = ("MODELSAT_", "PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != own)
    empty = {"PIP_CACHE_DIR": str(cache)} if cache else {}
    return kept | {"PATH": path, "REPOSITORY": repository} | empty


def committed(page: str) -> str:
    """Return the committed text of a page, which a clone has."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:{page}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return shown.stdout


def follow(page: list[Block], folder: Path, environ: dict[str, str]) -> list[Step]:
    """Run every block, including those marked `not run`, and print and return the steps."""
    clone = folder / "newcomer"
    clone.mkdir()
    steps: list[Step] = []
    print(f"{'step':<50} {'requests':>8} {'failed':>6} {'seconds':>8}", flush=True)
    with shell(folder, clone, environ) as running:
        for i, block in enumerate(page):
            if not steps or steps[-1].name != block.section:
                steps.append(Step(block.section))
            begin = running.log.stat().st_size
            steps[-1].seconds += running.run(block, TARGET_S)
            printed = running.log.read_bytes()[begin:].decode("utf-8", "replace")
            for requests, failed in TRAFFIC.findall(printed):
                steps[-1].requests += int(requests)
                steps[-1].failed += int(failed)
            if i + 1 == len(page) or page[i + 1].section != block.section:
                print(steps[-1], flush=True)
        print("\n" + running.log.read_text("utf-8", "replace")[-1500:])
    return steps


def main() -> int:
    """Follow the page; return 1 if a block failed or the whole took longer than TARGET_S."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", nargs="?", default="docs/tutorial.md", help="(%(default)s)")
    parser.add_argument(
        "--repository", default=str(ROOT), help="address to clone (this repository)"
    )
    parser.add_argument("--empty-cache", action="store_true", help="download every package again")
    parsed = parser.parse_args()
    page = blocks(committed(parsed.page))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "pip-cache" if parsed.empty_cache else None
        try:
            require_free(page)
            steps = follow(page, folder, environment(parsed.repository, cache))
        except BlockFailedError as error:
            print(f"error: {parsed.page}, {error}", file=sys.stderr)
            return 1
    total = Step(
        "in all",
        sum(step.requests for step in steps),
        sum(step.failed for step in steps),
        sum(step.seconds for step in steps),
    )
    print(total)
    result = {
        "total_s": round(total.seconds, 1),
        "target_s": TARGET_S,
        "empty_cache": parsed.empty_cache,
        "steps": [asdict(step) for step in steps],
    }
    print(json.dumps(result))
    return int(total.seconds > TARGET_S)


if __name__ == "__main__":
    sys.exit(main())
