"""Texts of many subjects without outcomes: documentation and code of installed packages.

    python -m research.many_folders.data.prose --out FILE

They teach what no outcome is needed for, which task of a test an instruction belongs to by the
task's keywords (research/many_folders/data/scenes.py).
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHORTEST, LONGEST = 160, 1500  # characters
EACH = 40  # texts of a package
CODE_SHARE = 0.3


def texts_of(path: Path) -> Iterator[tuple[str, str]]:
    """(documentation, source) of the documented functions and classes of a file."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            words = ast.get_docstring(node) or ""
            if len(words) >= SHORTEST:
                code = ast.get_source_segment(source, node) or ""
                yield words[:LONGEST], code[:LONGEST]


def main() -> None:
    """Write a JSON list of [package, text]."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4500)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    roots = [Path(sysconfig.get_paths()[k]) for k in ("purelib", "stdlib")]
    files: dict[str, list[Path]] = defaultdict(list)
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if parts[0] in ("site-packages", "dist-packages") or "test" in str(path).lower():
                continue
            package = parts[0] if len(parts) < 3 else "/".join(parts[:2])
            files[package.removesuffix(".py")].append(path)
    found: list[list[str]] = []
    for package, paths in files.items():
        own: list[str] = []
        for i in random.permutation(len(paths))[:12]:
            for words, code in texts_of(paths[i]):
                own.append(code if random.random() < CODE_SHARE else words)
        some = random.permutation(len(own))[:EACH]
        found += [[package, own[i]] for i in some if len(own) >= 5]
    chosen = random.permutation(len(found))[: arguments.count]
    arguments.out.write_text(json.dumps([found[i] for i in chosen]), encoding="utf-8")
    print(len(found), len(chosen), len({found[i][0] for i in chosen}))


if __name__ == "__main__":
    main()
