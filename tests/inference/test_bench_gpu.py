"""Run the GPU measurements without a GPU and on the fake one, and check that they see faults."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.gpu import __main__ as whole
from bench.gpu import kernel
from bench.gpu.machine import why_not
from bench.gpu.stream import TimedStream
from cpp_ext import cuda
from engine.bundle.manifest import commit_dir, hash_files, read_manifest, stage_dir
from engine.inference.tensorrt.cuda import Cuda
from tests.support.fake_gpu import BUILT, fake_library
from tools.processes import BUNDLE, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def library() -> ctypes.CDLL:
    return cuda.load(fake_library())


@pytest.fixture
def stream(library: ctypes.CDLL) -> Iterator[TimedStream]:
    opened = TimedStream(Cuda(library), staging=1 << 22)
    yield opened
    opened.close()
    assert library.fake_live() == 0


def test_kernel_is_found_right(stream: TimedStream, library: ctypes.CDLL) -> None:
    found = kernel.correctness(stream, library, cases=8, seconds=30, largest=9)
    assert (found["cases"], found["wrong"]) == (8, 0)
    speed = kernel.speed(stream, library, 1, 2, "bf16")
    assert all(v > 0 for name, v in speed.items() if name.endswith("_us"))
    stream.clear()
    swaps = kernel.swapping(stream, library, seconds=0.2)
    assert swaps["reads"] > 0
    assert swaps["mixed"] == 0


def test_wrong_kernel_is_found_wrong(
    stream: TimedStream, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes another offset, and one that writes nothing."""
    rank = cuda.rank
    monkeypatch.setattr(cuda, "rank", lambda *a, **k: rank(*a, **{**k, "offset": -0.41}))
    assert kernel.correctness(stream, library, 3, 30, largest=9)["wrong"] >= 1
    monkeypatch.setattr(cuda, "rank", lambda *a, **k: None)
    assert kernel.correctness(stream, library, 3, 30, largest=9)["wrong"] == 3


def test_step_that_fails_or_lasts_costs_no_other(tmp_path: Path) -> None:
    out, part = tmp_path / "gpu.json", tmp_path / "part.json"
    run = whole.Run(out, 60.0)
    python = (sys.executable, "-c")
    writes = f"open({str(part)!r}, 'w').write('{{\"figure\": 1}}'); print('words');"
    run.step("good", 20, lambda s: whole.run_process([*python, writes], s, part))
    assert run.finish() == 0
    run.step("absent", 5, lambda _: 1 / 0, "no such GPU")
    assert run.finish() == 3
    exits = [*python, writes + "raise SystemExit(3)"]
    run.step("bad", 20, lambda s: whole.run_process(exits, s, part))
    run.step("in a part", 5, lambda _: {"fine": 1, "speed": {"failed": "out of memory"}})
    sleeps = [*python, "import time; time.sleep(60)"]
    run.step("slow", 1, lambda s: whole.run_process(sleeps, s, part))
    run.step("raises", 5, lambda _: 1 / 0)
    assert run.finish() == 1
    found = json.loads(out.read_text("utf-8"))
    assert found["good"] == {"figure": 1}
    assert found["absent"] == {"not_here": "no such GPU"}
    assert found["bad"] == {"figure": 1, "failed": "exit status 3", "printed": "words\n"}
    results = {name: step["result"] for name, step in found["steps"].items()}
    assert results["good"] == "ran"
    assert results["absent"] == "not here: no such GPU"
    assert results["in a part"] == "failed: speed: out of memory"
    assert results["slow"] == "failed: stopped after 1 s"
    assert "ZeroDivisionError" in results["raises"]


def test_mistyped_step_is_a_failure(tmp_path: Path) -> None:
    run = whole.Run(tmp_path / "gpu.json", 60.0, ["kernel", "forward coda"])
    run.step("kernel", 5, lambda _: {})
    assert run.finish() == 1
    assert run.found["steps"]["forward coda"] == {"result": "failed: there is no such step"}


def test_answers_are_compared_with_the_exact_ones(tmp_path: Path) -> None:
    exact = np.array([[0.2, 0.7], [0.6, 0.1]])
    moved = exact + np.array([[0.6, 0.0], [0.0, 0.0]])
    np.savez(tmp_path / "forward cpu-fp32.npz", p0=exact, alone0=exact[:1])
    np.savez(tmp_path / "forward cuda.npz", p0=moved, alone0=exact[:1])
    found = whole.differences(tmp_path)
    assert found["cpu-fp32"]["largest"] == found["cpu-fp32"]["alone_or_joined"] == 0
    assert found["cuda"]["largest"] == pytest.approx(0.6)
    assert found["cuda"]["alone_or_joined"] == pytest.approx(0.6)
    assert found["cuda"]["same_first_choice"] == 0.5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real bundle with its fp32 graph as a plan for the fake GPU."""
    manifest = read_manifest(BUNDLE, "bundle")
    out = tmp_path_factory.mktemp("gpu") / "bundle"
    folder = stage_dir(out, "bundle")
    shutil.copytree(BUNDLE, folder, dirs_exist_ok=True)
    for name in ("manifest.json", "backbone.bf16.fused"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(BUNDLE / "backbone.onnx", folder / "backbone.sm89.plan")
    kept = {d: f for d, f in manifest.graphs.items() if (folder / f).is_file()}
    graphs = kept | {"tensorrt": "backbone.sm89.plan", "cuda-fp16": "backbone.onnx"}
    commit_dir(folder, out, replace(manifest, files=hash_files(folder), graphs=graphs))
    return out


def measure(out: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "bench.gpu", str(out), "--seconds", "0.5", "--shapes", "2"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env={**os.environ, **environment}, check=False
    )
    return done.returncode, json.loads(out.read_text("utf-8"))


def test_run_ends_on_the_fake_gpu(bundle: Path, tmp_path: Path) -> None:
    """All that needs CUDA and TensorRT alone runs; ONNX Runtime's providers are not here."""
    steps = ["machine", "kernel", "forward cpu-fp32", "forward tensorrt", "forward cuda"]
    steps += ["differences", "server tensorrt"]
    given = ("--bundle", str(bundle), "--libraries", "tests.support.fake_gpu", "--steps", *steps)
    status, found = measure(tmp_path / "gpu.json", *given, **{BUILT: str(fake_library())})
    results = {name: step["result"] for name, step in found["steps"].items()}
    assert results.pop("forward cuda").startswith("not here: this onnxruntime has no CUDA")
    assert results == dict.fromkeys(set(steps) - {"forward cuda"}, "ran")
    assert status == found["exit_status"] == 3
    assert found["kernel"]["correctness"]["wrong"] == 0
    assert found["differences"]["tensorrt"]["largest"] < 1e-5
    assert "CUDA graphs" in found["forward tensorrt"]["opened"]["backend"]
    assert found["forward tensorrt"]["swaps"]["wrong"] == 0
    assert found["forward tensorrt"]["latency"][0]["requests"] == 1
    changes = found["server tensorrt"]["changes"]
    assert changes["changes"] > 0
    assert set(changes["codes"]) == {"OK"}


def test_what_is_missing_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not("", bundle, stand_in=False) == ""
    assert why_not("plan", bundle, stand_in=True) == ""
    assert "has plans for none" in why_not("plan", BUNDLE, stand_in=True)
    monkeypatch.setattr(
        "bench.gpu.machine.find_cuda", lambda: Cuda(ctypes.CDLL(str(fake_library())))
    )
    assert "_score_cuda.so" in why_not("kernel", bundle, stand_in=False)
