"""Time docs/tutorial.md: run its blocks, unchanged, in an empty folder.

    python -m tools.docs.time_tutorial [--repository ADDRESS] [--empty-cache]

This goes from `git clone` of the committed state to a request that a real Envoy routes, with
nothing installed before. pip uses the user's cache unless --empty-cache is given. It fails if a
block fails. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.docs.doc_blocks import Block, BlockFailedError, blocks, require_free, shell
from tools.processes import ROOT

TUTORIAL = "docs/tutorial.md"
TARGET_S = 15 * 60


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


def follow(page: list[Block], folder: Path, environ: dict[str, str]) -> list[dict[str, object]]:
    """Run every block, including those marked `not run`; return line, command, seconds of each."""
    clone = folder / "newcomer"
    clone.mkdir()
    timed: list[dict[str, object]] = []
    with shell(folder, clone, environ) as running:
        for block in page:
            seconds = round(running.run(block, TARGET_S), 1)
            command = block.text.splitlines()[0]
            timed.append({"line": block.line, "command": command, "seconds": seconds})
            print(f"{seconds:7.1f} s   {command}", flush=True)
        print("\n" + running.log.read_text("utf-8", "replace")[-1500:])
    return timed


def main() -> int:
    """Run the tutorial; return 1 if a block failed or the whole took longer than TARGET_S."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--repository", default=str(ROOT), help="address to clone (this repository)"
    )
    parser.add_argument("--empty-cache", action="store_true", help="download every package again")
    parsed = parser.parse_args()
    page = blocks(committed(TUTORIAL))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "pip-cache" if parsed.empty_cache else None
        try:
            require_free(page)
            timed = follow(page, folder, environment(parsed.repository, cache))
        except BlockFailedError as error:
            print(f"error: {TUTORIAL}, {error}", file=sys.stderr)
            return 1
    total = round(sum(float(str(block["seconds"])) for block in timed), 1)
    result = {
        "total_s": total,
        "target_s": TARGET_S,
        "empty_cache": parsed.empty_cache,
        "blocks": timed,
    }
    print(json.dumps(result))
    return int(total > TARGET_S)


if __name__ == "__main__":
    sys.exit(main())
