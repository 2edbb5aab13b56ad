"""The wheel: what it holds, and that it serves and calls from environments of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.optional_tools import LITELLM, missing, needs
from tools.litellm_proxy import ENVIRONMENT
from tools.lock import read_pins
from tools.processes import BUNDLE, ROOT, Server, await_ready, free_port, start

pytestmark = [pytest.mark.slow, pytest.mark.integration]
LOCK = ROOT / "requirements" / "serve.txt"
# Nothing of the working tree or of the environment that runs the tests.
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MODELSAT_"))}
CALL = """
import sys
from modelsat import Client
with Client(sys.argv[1], 30) as client:
    print(client.route("What is 3 + 4?").selected)
"""
IMPORT = """
import json, sys, modelsat
modelsat.Client
print(json.dumps({"file": modelsat.__file__, "modules": sorted(sys.modules)}))
"""


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Return what a program prints when it runs in `folder`; its errors fail the test."""
    done = subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path, *requirements: str) -> Path:
    """Create an environment with packages of the lock, and return its Python interpreter.

    Skips the test if no package index gives them; fails with MODELSAT_REQUIRE_TOOLS=1, as in CI.
    """
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    done = subprocess.run(install, env=CLEAN, capture_output=True, text=True)
    if done.returncode:
        reason = f"pip could not install {' '.join(requirements)}: {done.stderr[-500:]}"
        require = os.environ.get("MODELSAT_REQUIRE_TOOLS") == "1"
        (pytest.fail if require else pytest.skip)(reason)
    return python


CALLBACK = """
import asyncio, sys
from pathlib import Path
from litellm.proxy.types_utils.utils import get_instance_fn
router = get_instance_fn("engine.integrations.litellm.router", str(Path("config.yaml").resolve()))
data = {"model": "auto", "messages": [{"role": "user", "content": "What is 3 + 4?"}]}
data = asyncio.run(router.async_pre_call_hook(None, None, data, "acompletion"))
import engine
print(engine.__file__, data["metadata"]["modelsat"]["why"], *sorted(sys.modules))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree, built from a copy: build/ of a checkout may hold old files."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in run(listed, ROOT).split("\0"):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "-w", dist, source], source)
    (built,) = dist.iterdir()
    return built


def test_wheel_holds_the_product_alone(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"modelsat", "engine", "export", "training", "cpp_ext"}
    compiled = sorted(n.partition(".cpython")[0] for n in names if n.endswith(".so"))
    libraries = ["cpp_ext/_kernel", "cpp_ext/forward/_forward"]
    assert compiled == (libraries if shutil.which("c++") else [])


def test_installed_wheel_serves_a_bundle_and_calls_it(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", "-r", str(LOCK))
    # Without an index: the lock alone has to meet the wheel's requirements.
    run([python, "-m", "pip", "install", "-q", "--no-index", f"{wheel}[cpu]"], tmp_path)
    modelsat = tmp_path / "venv" / "bin" / "modelsat"
    assert "serve" in run([modelsat, "--help"], tmp_path)
    command = [str(modelsat), "serve", "--bundle", str(BUNDLE), "--address", "127.0.0.1:0"]
    command += ["--candidates-db", "candidates.sqlite", "--outcomes-db", "outcomes.sqlite"]
    log = tmp_path / "server.log"
    server = Server(start(command, log, cwd=tmp_path, env=CLEAN), log)
    try:
        await_ready(server)
        selected = run([python, "-c", CALL, server.address], tmp_path).strip()
        listed = run([modelsat, "candidates", "list", "--server", server.address], tmp_path)
        assert selected
        assert selected in listed
        assert server.terminate() == 0
    finally:
        server.kill()


def test_installed_client_needs_grpc_and_protobuf_alone(wheel: Path, tmp_path: Path) -> None:
    packages = ("grpcio", "protobuf", "googleapis-common-protos")
    pins = tmp_path / "pins.txt"  # constraints cannot have hashes
    pins.write_text("\n".join(f"{n}=={v}" for n, v in read_pins(LOCK).items()))
    python = environment(tmp_path / "venv", "-c", str(pins), *packages)
    run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], tmp_path)
    imported = json.loads(run([python, "-c", IMPORT], tmp_path))
    assert Path(imported["file"]).is_relative_to(tmp_path)
    loaded = set(imported["modules"])
    assert not loaded & {"numpy", "onnxruntime", "engine.serving", "engine.registry"}
    assert len(loaded) < 400


@needs(missing(LITELLM))
def test_installed_wheel_gives_litellm_its_callback_in_any_folder(
    wheel: Path, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site"]
    run([*pip, wheel], tmp_path)
    (tmp_path / "elsewhere").mkdir()
    python = ENVIRONMENT / "bin" / "python"
    settings = {"LITELLM_MODELSAT_SERVER": f"127.0.0.1:{free_port()}"}  # the default may be in use
    code = f"import os, sys; os.environ.update({settings}); "
    code += f"sys.path.append({str(tmp_path / 'site')!r})\n{CALLBACK}"
    file, why, *modules = run([python, "-c", code], tmp_path / "elsewhere").split()
    assert Path(file).is_relative_to(tmp_path)
    assert why == "UNAVAILABLE"  # it asked, and no server runs
    assert not {"onnxruntime", "engine.serving", "engine.routing"} & set(modules)
