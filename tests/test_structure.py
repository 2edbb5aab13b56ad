"""The layout holds: rooms stay small, and one name of a type stands for one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tools.processes import ROOT

PRODUCT = ("modelsat", "engine", "cpp_ext", "training", "export", "research")
MAX_MODULES = 14


def modules(*packages: str) -> list[Path]:
    """Return the hand-written Python files of `packages`."""
    files = [file for name in packages for file in sorted((ROOT / name).rglob("*.py"))]
    return [file for file in files if "_pb2" not in file.name]


def type_names(module: Path) -> list[str]:
    """Return the public types that `module` defines: classes, and aliases in CamelCase."""
    names = []
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                names.append(name)
    return [name for name in names if not name.startswith("_")]


def test_engine_root_holds_no_loose_module() -> None:
    assert [file.name for file in (ROOT / "engine").glob("*.py")] == ["__init__.py"]


def test_no_folder_of_product_code_is_oversized() -> None:
    counts: dict[Path, int] = defaultdict(int)
    for file in modules(*PRODUCT):
        counts[file.parent] += 1
    assert counts, "no product code was found"
    oversized = {str(k.relative_to(ROOT)): n for k, n in counts.items() if n > MAX_MODULES}
    assert oversized == {}


def test_no_type_name_stands_for_two_things_in_engine() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in modules("engine"):
        for name in type_names(file):
            places[name].append(str(file.relative_to(ROOT)))
    assert len(places) > 100, "the scan finds types"
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
