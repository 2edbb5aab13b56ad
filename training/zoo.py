"""Refresh the aptitude figures of the shipped zoo from a data folder.

    python -m training.zoo --data DIR --zoo pretrained/zoo.json

A zoo entry is matched to the data's candidate by its display name; names, context windows and
prices are kept as they stand in the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from engine.contract.outcomes import task_keywords


def refresh(data: Path, zoo: Path) -> int:
    """Rewrite `zoo` in place; returns how many entries were refreshed."""
    test = json.loads((data / "aptitude.json").read_text(encoding="utf-8"))
    keywords = task_keywords(test["tasks"])
    content = json.loads(zoo.read_text(encoding="utf-8"))
    known = [c for c in content["candidates"] if c["display_name"] in test["scores"]]
    for candidate in known:
        figures = test["scores"][candidate["display_name"]]
        candidate["aptitude"] = dict(zip(keywords, figures, strict=True))
    zoo.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(known)


def main() -> None:
    """Parse the command line and refresh."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, default=Path("pretrained/zoo.json"))
    arguments = parser.parse_args()
    print(f"{refresh(arguments.data, arguments.zoo)} candidates refreshed")


if __name__ == "__main__":
    main()
