"""The site builds without warnings and loads nothing from elsewhere; the reference is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.cli.main import parser
from engine.pb import candidate_service_pb2, router_service_pb2
from engine.serving.settings import Settings, flag
from modelsat import AsyncClient, Client
from tools.docs import api, commands, pictures, tables
from tools.processes import ROOT

pytestmark = pytest.mark.slow

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "pretrained/README.md", *DOCS]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
OTHER_HOST = re.compile(
    r"""(?:src|href|srcset|action)=["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does; --strict makes an error of every link that leads nowhere."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    made = {str(p.relative_to(site).with_suffix("")) for p in site.rglob("*.html")}
    written = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in DOCS}
    reference = {f"reference/{n}" for n in ("commands", "api")}
    assert made == written | reference | {"index", "model-card", "404"}


def test_the_site_asks_no_other_host(site: Path) -> None:
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = re.sub(r'<a [^>]*href="[^"]*"', "", page.read_text("utf-8"))  # followed by people
        assert not OTHER_HOST.search(text), page


def test_the_reference_names_every_setting_command_and_method() -> None:
    for field in fields(Settings):
        assert f"| `{flag(field.name)}` |" in tables.updated("configuration.md")
    listed = commands.page()
    for name, found in commands.leaves("modelsat", parser()):
        assert f"## {name}\n" in listed
        flags = [o for a in found._actions for o in a.option_strings if o not in ("-h", "--help")]
        assert name == "modelsat serve" or [o for o in flags if o not in listed] == []


def test_the_client_s_page_has_every_method(site: Path) -> None:
    page = (site / "reference" / "client.html").read_text("utf-8")
    for kind in (Client, AsyncClient):
        methods = [n for n, m in vars(kind).items() if callable(m) and not n.startswith("_")]
        anchors = {n: f'id="{kind.__module__}.{kind.__name__}.{n}"' for n in methods}
        assert [name for name, anchor in anchors.items() if anchor not in page] == []


def test_the_reference_has_every_field_of_the_api_with_its_comment() -> None:
    page = api.page()
    for file in (candidate_service_pb2.DESCRIPTOR, router_service_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            section = page.partition(f"## {message.name}\n")[2].partition("\n## ")[0]
            rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
            said = {row[1].strip("`"): row[-1].strip(" |") for row in rows[2:]}
            assert sorted(said) == sorted(f.name for f in message.fields)
            assert all(said.values()), message.name


def test_the_reference_is_the_same_wherever_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    makers = (api.page, commands.page)
    before = [make() for make in makers]
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.chdir("/")
    assert [make() for make in makers] == before
    assert str(ROOT) not in "".join(before)


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_page_holds_the_table_that_the_code_gives(name: str) -> None:
    written = (tables.REFERENCE / name).read_text("utf-8")
    assert written == tables.updated(name), "run python -m tools.docs.tables"


def test_the_pictures_are_what_their_script_draws() -> None:
    for name, content in pictures.pictures().items():
        drawn = (ROOT / "docs" / "images" / name).read_text("utf-8")
        assert drawn == content, f"{name}: run python -m tools.docs.pictures"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text("utf-8")) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=name_of)
def test_what_a_page_names_exists(page: Path) -> None:
    """Targets of make, modules that are run, subcommands: also where no test runs the command."""
    text = page.read_text("utf-8")
    targets = {name for name, _ in commands.targets()}
    made = re.findall(r"(?:^ {4,}|`|\$ )make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert [t for t in made if t not in targets] == []
    packages = "bench|engine|examples|export|research|tests|tools|training"
    run = re.findall(rf"python -m ((?:{packages})[\w.]*)", text)
    assert [m for m in run if find_spec(m) is None] == []
    known = {name.split()[1] for name, _ in commands.leaves("modelsat", parser())}
    called = re.findall(r"(?:^ {4,}|`|\$ |bin/)modelsat ([a-z]+)\b", text, re.MULTILINE)
    assert [c for c in called if c not in known] == []
