"""The `modelsat` command: every argument is explained, and commands load only what they need."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine.cli.main import COMMANDS, main, parser
from modelsat import Client
from tools.processes import ROOT, Server

TUTOR = ROOT / "examples" / "candidates" / "calculus-tutor.json"
SERVER_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "prometheus_client")
# Runs main() without the packages of the server, as after `pip install modelsat`.
LIGHT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from engine.cli.main import main
sys.exit(main({arguments!r}))
"""


def commands(
    name: str, command: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command and action with its parser."""
    yield name, command
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from commands(f"{name} {word}", child)


def test_every_command_and_argument_has_help() -> None:
    unexplained = []
    for name, command in commands("modelsat", parser()):
        if not command.description:
            unexplained.append(name)
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help for choice in action._choices_actions}
                unexplained += [f"{name} {word}" for word in action.choices if not helps.get(word)]
            elif len((action.help or "").split()) < 3:
                unexplained.append(f"{name} {action.option_strings or action.dest}")
    assert unexplained == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_that_of_the_whole_parser(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    (whole,) = (p for name, p in commands("modelsat", parser()) if name == f"modelsat {command}")
    assert shown == whole.format_help()


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, command in commands("modelsat", parser()):
        assert max(map(len, command.format_help().splitlines())) <= 80, name


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where the packages of the server cannot be imported."""
    code = LIGHT.format(missing=SERVER_PACKAGES, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [
        ("route", "Hi", "--server", "127.0.0.1:1"),
        ("health", "--server", "127.0.0.1:1"),
        ("candidates", "list", "--server", "127.0.0.1:1"),
        ("adaptation", "status", "--server", "127.0.0.1:1"),
        ("candidates", "create", str(TUTOR), "--server", "127.0.0.1:1"),
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_client_commands_need_no_package_of_the_server(arguments: tuple[str, ...]) -> None:
    done = light(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: "), done.stderr
    assert "pip install" not in done.stderr
    listing = light("--help")
    assert listing.returncode == 0, listing.stderr
    assert all(summary in " ".join(listing.stdout.split()) for summary in COMMANDS.values())


@pytest.mark.parametrize("command", ["serve", "calibrate"])
def test_server_commands_name_the_extra_to_install(command: str) -> None:
    done = light(command)
    assert done.returncode == 1
    assert "pip install 'modelsat[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_candidates_list_has_a_line_for_each_candidate_in_80_columns(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["candidates", "list", "--server", shared_server.address]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    with Client(shared_server.address) as client:
        candidates = client.list_candidates()
    assert [row[1] for row in rows] == [candidate.id for candidate in candidates]
    assert all(len(row) == 11 and "…" not in "".join(row) for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("route", "--help"),
        ("candidates", "list"),
        ("candidates", "get", "candidates/{candidate}"),
        ("adaptation", "status", "--json"),
        ("route", "What is 2 + 2?"),
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_a_closed_pipe_ends_a_command_quietly(
    arguments: tuple[str, ...], shared_server: Server
) -> None:
    with Client(shared_server.address) as client:
        candidate = client.list_candidates()[0].id
    words = [word.format(candidate=candidate) for word in arguments]
    if words[0] in ("route", "candidates", "adaptation") and "--help" not in words:
        words += ["--server", shared_server.address]
    read, write = os.pipe()
    os.close(read)  # as `| head -0` does before anything is printed
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli.main", *words],
        stdout=write,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        text=True,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_closed_connection_is_no_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise BrokenPipeError("of a connection")

    monkeypatch.setattr("engine.cli.token._run", fail)
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError, match="of a connection"):
            main(["token", "--role", "route", "--name", "gateway-1"])


def test_serve_has_one_blas_thread() -> None:
    """OpenBLAS reads the number when NumPy is loaded, so it must be set before."""
    watch = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("threads", os.environ.get("OPENBLAS_NUM_THREADS"))
sys.meta_path.insert(0, Watch())
from engine.cli.main import main
main(["serve", "--help"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", watch]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "threads 1"
