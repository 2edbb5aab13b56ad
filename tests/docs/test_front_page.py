"""README's numbers, badges and Python example are true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import __version__
from engine.cli.main import main
from modelsat import Client
from tools.docs import readme_pictures as pictures
from tools.processes import Server
from training.evaluation import publish

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_pages_show_the_figures_of_the_shipped_weights() -> None:
    model = json.loads(read("pretrained/model.json"))
    assert set(pictures.DATASETS) == set(model["report"]["datasets"])
    for page in publish.PAGES:
        content = read(page)
        assert "<!-- figures: " in content
        assert publish.fill(content, model["report"]) == content


def test_the_chart_shows_what_the_performance_page_says() -> None:
    performance = read("docs/explanation/performance.md")
    for _, milliseconds in pictures.STEPS:
        assert f"| {milliseconds} |" in performance


def test_the_badges_name_this_version_and_this_license() -> None:
    badges = {n: read(f"docs/images/badge-{n}.svg") for n in ("version", "license")}
    assert f"<title>version: {__version__}</title>" in badges["version"]
    assert f"modelsat-{__version__}" in read("README.md")
    assert "Apache License" in read("LICENSE")
    assert f"## [{__version__}] - " in read("CHANGELOG.md")
    assert f"version: {__version__}" in read("CITATION.cff")


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"modelsat {__version__}\n"


def test_the_python_example_runs(shared_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    example = read("README.md").partition("```python\n")[2].partition("```")[0]
    exec(example.replace("127.0.0.1:50051", shared_server.address), {})
    selected = capsys.readouterr().out.split()[0]
    with Client(shared_server.address) as client:
        assert client.get_candidate(selected).id == selected
