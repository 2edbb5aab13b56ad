"""What all commands have in common, as docs/reference/cli.md says it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import health
from engine.cli.main import main
from modelsat import Client
from tools.processes import ROOT, Server

PAGE = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")


def interrupted(parsed: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (0, ["candidates", "template"]),
        (1, ["candidates", "list", "--server", "127.0.0.1:1"]),
        (1, ["health", "--server", "127.0.0.1:1"]),
        (1, ["candidates", "create", "missing.toml"]),
        (2, ["candidates", "list", "--jason"]),
        (2, ["candidates"]),
        (2, ["candidates", "list", "--server", "http://127.0.0.1:1"]),
        (2, ["candidates", "update", "x", "--context-window", "many"]),
    ],
)
def test_exit_statuses_are_those_of_the_page(
    status: int, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"\n| {status} |" in PAGE
    try:
        seen = main(arguments)
    except SystemExit as end:
        seen = int(end.code or 0)
    assert seen == status
    printed = capsys.readouterr()
    assert bool(printed.out) == (status == 0)
    if status == 1:
        assert re.fullmatch(r"error: [^\n]+\n", printed.err)


@pytest.mark.parametrize("arguments", [["--jason"], ["--wilingness", "1"], ["y"]])
def test_a_wrong_argument_leads_to_the_help_of_its_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["route", "x", *arguments])
    assert "see `modelsat route --help`" in capsys.readouterr().err


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "run", interrupted)
    assert main(["health"]) == 130
    assert "\n| 130 |" in PAGE


def test_the_page_names_the_fields_of_listings(
    shared_server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSAT_SERVER", shared_server.address)
    for command in ("candidates list", "candidates revisions", "aptitude tasks"):
        assert main([*command.split(), "--json"]) == 0
        fields = list(json.loads(capsys.readouterr().out)[0])
        (row,) = re.findall(rf"\| `{command} --json` \| list of (.*) \|", PAGE)
        assert re.findall(r"`(\w+)`", row) == fields


def test_an_instruction_from_the_standard_input_is_the_same(
    shared_server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSAT_SERVER", shared_server.address)
    decisions = []
    for text, stdin in (("Name two\nprimes.", ""), ("-", "Name two\nprimes.\n")):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        assert main(["route", text, "--json", "--dry-run"]) == 0
        decisions.append(json.loads(capsys.readouterr().out))
    assert decisions[0]["ranking"] == decisions[1]["ranking"]
    assert decisions[0]["input_tokens"] == decisions[1]["input_tokens"]


def test_a_decision_fits_the_width_and_names_reasons_once(
    shared_server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSAT_SERVER", shared_server.address)
    monkeypatch.setenv("COLUMNS", "80")
    with Client(shared_server.address) as client:
        ids = [candidate.id for candidate in client.list_candidates()]
    assert main(["route", "Name two primes.", "--deny", ids[0], "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("│") for line in lines) == len(ids) - 1
    assert main(["route", "Name two primes.", "--allow", ids[0], "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"and {len(ids) - 4} more: not among the allowed" in " ".join(printed.split())


def test_a_wrong_address_in_the_environment_is_refused_like_a_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELSAT_SERVER", "router")
    with pytest.raises(SystemExit) as end:
        main(["candidates", "list"])
    assert end.value.code == 2
    assert "router has no port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "existing"),
    [
        (["candidates", "template", "--out", "{}/a.toml"], "a.toml"),
        (["store", "backup", "{}/a.sqlite", "--candidates-db", "{}/c.sqlite"], "a.sqlite"),
        (["outcomes", "backup", "{}/a.sqlite", "--outcomes-db", "{}/o.sqlite"], "a.sqlite"),
        (
            ["outcomes", "export", "--out", "{}", "--outcomes-db", "{}/o.sqlite"],
            "instructions.jsonl.gz",
        ),
        (
            ["aptitude", "from-published", "pretrained/published.json", "--out", "{}/a.json"],
            "a.json",
        ),
    ],
)
def test_what_exists_stays_without_force(
    command: list[str], existing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / existing
    file.write_text("mine", "utf-8")
    assert main([part.format(tmp_path) for part in command]) == 1
    assert "which exists; add --force" in capsys.readouterr().err
    assert file.read_text("utf-8") == "mine"


COMPLETE = """
source <({python} -m engine.cli.main completion bash)
complete -p modelsat > /dev/null || exit 1
try() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_modelsat; echo "${{COMPREPLY[*]}}"
}}
try modelsat cand
try modelsat candidates upd
try modelsat candidates update --ta
try modelsat candidates template --format ""
"""


def test_bash_completes_commands_flags_and_choices() -> None:
    script = COMPLETE.format(python=sys.executable)
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[:4] == ["candidates", "update", "--tags", "toml json"]


@pytest.mark.parametrize("command", [["completion", "zsh"], ["candidates", "template"]])
def test_what_needs_no_server_needs_no_package_of_it(command: list[str]) -> None:
    blocked = "import sys; sys.modules.update(numpy=None, onnxruntime=None);"
    code = f"{blocked} from engine.cli.main import main; sys.exit(main({command}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "candidates" in done.stdout
