"""The package `modelsat`: what it imports, what it offers, and the examples in its docstrings."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import modelsat
from modelsat import AsyncClient, Client
from tests.serving.test_server import QUESTION
from tools.processes import ROOT, Server

# What `pip install grpcio protobuf googleapis-common-protos` brings.
DISTRIBUTIONS = ("grpc", "google", "typing_extensions")
METHODS = [n for n, _ in inspect.getmembers(Client, inspect.isfunction) if not n.startswith("_")]


def test_client_needs_grpc_and_protobuf_alone(tmp_path: Path) -> None:
    for name in DISTRIBUTIONS:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        origin = spec.submodule_search_locations or [spec.origin]
        source = Path(str(next(iter(origin))))
        (tmp_path / source.name).symlink_to(source)
    for name in ("modelsat", "engine"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = "import sys, json, modelsat; modelsat.Client; print(json.dumps(sorted(sys.modules)))"
    # -S: no site-packages of this environment; -P and -E: nothing else on the path.
    command = [sys.executable, "-S", "-P", "-c", code]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "modelsat" in loaded
    packages = {".".join(m.split(".")[:2]) for m in loaded if m.startswith("engine.")}
    assert packages == {"engine.api", "engine.client", "engine.pb"}
    assert not loaded & {"numpy", "onnxruntime", "tokenizers", "prometheus_client", "rich"}


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    assert len(METHODS) > 10
    for name in ["__init__", *METHODS]:
        sync, asynchronous = getattr(Client, name), getattr(AsyncClient, name)
        own, other = inspect.signature(sync).parameters, inspect.signature(asynchronous).parameters
        assert list(own) == list(other), name
        for parameter in own:
            if parameter != "instructions":  # AsyncClient takes asynchronous iterables as well
                assert own[parameter] == other[parameter], name


def examples(kind: type[Any]) -> list[tuple[str, str]]:
    """(name, code) of every example in the docstrings of a client."""
    documented = [(kind.__name__, kind)]
    documented += [(n, getattr(kind, n)) for n in METHODS if n != "close"]
    code = []
    for name, member in documented:
        _, marker, example = (inspect.getdoc(member) or "").partition("Example:\n")
        assert marker, f"{kind.__name__}.{name} has no example"
        code.append((name, textwrap.dedent(example)))
    return code


@pytest.mark.parametrize(("name", "code"), examples(Client))
def test_example_of_the_client_runs(shared_server: Server, name: str, code: str) -> None:
    with Client(shared_server.address, 30) as client:
        before = client.list_candidates()
        try:
            exec(code.replace("127.0.0.1:50051", shared_server.address), names(client))
        finally:
            client.replace_candidates(before)


@pytest.mark.parametrize(("name", "code"), examples(AsyncClient))
async def test_example_of_the_async_client_runs(
    shared_server: Server, name: str, code: str
) -> None:
    with Client(shared_server.address, 30) as sync_client:
        before = sync_client.list_candidates()
        code = code.replace("127.0.0.1:50051", shared_server.address)
        compiled = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        try:
            async with AsyncClient(shared_server.address, 30) as client:
                variables = names(sync_client) | {"client": client}
                coroutine = eval(compiled, variables)
                if coroutine is not None:
                    await coroutine
        finally:
            sync_client.replace_candidates(before)


def names(client: Client) -> dict[str, Any]:
    """Variables that examples use."""
    variables: dict[str, Any] = {name: getattr(modelsat, name) for name in modelsat.__all__}
    decision = client.route(QUESTION)
    return variables | {"client": client, "decision": decision, "dataclasses": dataclasses}
