"""Every command in README, tutorial and how-to pages works, or the page says why it is not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.optional_tools import ENVOY, LITELLM, NODE_PACKAGES, missing, needs
from tools.docs.doc_blocks import Block, blocks, require_free, shell
from tools.processes import ROOT

pytestmark = pytest.mark.docs

PAGES = [
    page
    for page in (
        ROOT / "README.md",
        ROOT / "docs/tutorial.md",
        ROOT / "docs/own-models.md",
        *sorted((ROOT / "docs/how-to").glob("*.md")),
    )
    if blocks(page.read_text("utf-8"))
]
PAGE_TIMEOUT_S = 120
# Built by make, and too large to build again for each page. Not node_modules: `npm ci` would
# empty the folder behind the link.
SHARED = (".venv", "artifacts", ".venv-envoy", ".venv-litellm")
NEEDED = {
    "clients": (NODE_PACKAGES,),
    "envoy": (ENVOY,),
    "litellm": (LITELLM,),
    "own-models": (ENVOY, LITELLM),
    "tutorial": (ENVOY,),
}
LONG_AGO = 10**9  # makes everything that is shared newer than its sources


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def skipped() -> list[tuple[str, Block]]:
    return [
        (f"{name_of(p)}:{b.line}", b)
        for p in PAGES
        for b in blocks(p.read_text("utf-8"))
        if b.not_run is not None
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the working tree, with its changes, and links to what make builds."""
    copy = tmp_path_factory.mktemp("checkout") / "modelsat"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    kernels = [str(p.relative_to(ROOT)) for p in (ROOT / "cpp_ext").glob("_kernel*.so")]
    for name in [*filter(None, listed), *kernels]:
        source, target = ROOT / name, copy / name
        if source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            os.utime(target, (LONG_AGO, LONG_AGO))
    for name in SHARED:
        if (ROOT / name).exists():
            (copy / name).symlink_to((ROOT / name).resolve())
    return copy


def environment(checkout: Path, folder: Path) -> dict[str, str]:
    """Return a reader's environment in the copy; stores and temporary files go to `folder`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MODELSAT_", "PYTEST_"))}
    return kept | {
        "PATH": f"{checkout / '.venv/bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),  # .venv's own modelsat is the real checkout
        "MODELSAT_CANDIDATES_DB": str(folder / "candidates.sqlite"),
        "MODELSAT_OUTCOMES_DB": str(folder / "outcomes.sqlite"),
        "TMPDIR": str(folder),
        # make has fetched the packages; do not wait for a registry that hangs.
        "npm_config_prefer_offline": "true",
        "npm_config_audit": "false",
    }


def cases() -> list[Any]:
    """Return a case for each page; a page that needs a missing tool is skipped."""
    marks = [[needs(missing(tool)) for tool in NEEDED.get(p.stem, ())] for p in PAGES]
    return [pytest.param(p, id=name_of(p), marks=m) for p, m in zip(PAGES, marks, strict=True)]


@pytest.mark.parametrize("page", cases())
def test_the_commands_of_a_page_work(page: Path, checkout: Path, tmp_path: Path) -> None:
    runnable = [b for b in blocks(page.read_text("utf-8")) if b.not_run is None]
    assert runnable, "a page without a command that can be run"
    require_free(runnable)
    # Not tmp_path: Ray's sockets are below TMPDIR, and a socket's path has 107 bytes at most.
    with (
        tempfile.TemporaryDirectory() as short,
        shell(tmp_path, checkout, environment(checkout, Path(short))) as running,
    ):
        for block in runnable:
            print(f"line {block.line}: {running.run(block, PAGE_TIMEOUT_S):.1f} s")
    # The page left the real checkout as it was.
    assert [missing(tool) for tool in NEEDED.get(page.stem, ()) if missing(tool)] == []


@pytest.mark.parametrize(
    ("where", "block"), skipped(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_block_that_is_not_run_says_why(where: str, block: Block) -> None:
    assert len(block.not_run.split()) > 1, f"{where} gives no reason"
    pytest.skip(f"{where} is not run: {block.not_run}")


def test_make_test_all_starts_where_no_tool_can_be_installed(tmp_path: Path) -> None:
    """Neither an environment of its own nor npm's packages; the suite starts nevertheless."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    stubs = {"bin/npm": "exit 1", "bin/python": 'echo "started: $*"'}
    for name, body in stubs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("requirements", "examples/node"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/prometheus", tmp_path / ".ci")
    built = [f"--assume-old={name}" for name in ("artifacts/bundle/manifest.json", "bin/.dev")]
    done = subprocess.run(
        ["make", *built, "test-all", "PYTHON=false", "VENV=bin", "BIN=bin"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "started: -m pytest" in done.stdout
    assert done.stderr.count("skipped: ") == 4
