"""Ask a GPU machine everything in one run without a network, and write one JSON file.

    python -m bench.gpu OUT.json [--bundle DIR] [--limit 280] [--steps machine "forward cuda" ...]

Builds the CUDA kernel, and without --bundle exports one from the checkpoint, with an fp16 graph and
a TensorRT plan. Each step is a process with a time limit of its own: one that fails costs no other.
What this machine lacks is reported as "not_here" with the reason. Exit status: 0 if every step ran,
1 if one failed or had no time, 3 if none failed but one is not here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.forward import BASELINES
from bench.gpu.machine import describe, gpu_state, output_of, why_not
from bench.gpu.parts import LIBRARIES
from export.tensorrt import present_capability
from tools.processes import ROOT

NOT_HERE, FAILED = "not_here", "failed"
FORMATS = "onnx,int8,fp16,fused,tensorrt"
CHECKPOINT = ROOT / "artifacts" / "checkpoint"
DEVICES = {"tensorrt": "plan", "cuda": "CUDA", "cpu": ""}  # of servers -> what they need
SANITIZERS = ("memcheck", "racecheck", "initcheck")
NO_TIME = "no time was left"


class Run:
    """The JSON file, and what is left of the time. only: names of the steps, or all."""

    def __init__(self, out: Path, limit_s: float, only: Sequence[str] = ()) -> None:
        self._out, self._started, self._limit_s = out, time.monotonic(), limit_s
        self._only = only
        self.found: dict[str, Any] = {"steps": {}}

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self._limit_s - (time.monotonic() - self._started)

    def step(
        self, name: str, limit_s: float, make: Callable[[float], Any], reason: str = ""
    ) -> None:
        """Store make(seconds it may take), or how it failed, or the reason why it is not here."""
        if self._only and name not in self._only:
            return
        started = time.monotonic()
        if reason:
            value: Any = {NOT_HERE: reason}
        elif self.left_s() < 2:
            value = {FAILED: NO_TIME}
        else:
            try:
                value = make(min(limit_s, self.left_s()))
            except Exception as error:  # noqa: BLE001 - one step costs no other
                value = {FAILED: f"{type(error).__name__}: {error}"[:2000]}
        self.found[name] = value
        took = round(time.monotonic() - started, 1)
        at = round(started - self._started, 1)
        self.found["steps"][name] = {"at_s": at, "took_s": took, "result": result_of(value)}
        self._write()
        print(f"{at:6.1f} s  {name}: {result_of(value)} ({took} s)", flush=True)

    def finish(self) -> int:
        """Store the time and the exit status, and return the latter."""
        for name in set(self._only) - self.found["steps"].keys():
            self.found["steps"][name] = {"result": f"{FAILED}: there is no such step"}
        results = [step["result"] for step in self.found["steps"].values()]
        bad = any(r.startswith(FAILED) for r in results)
        status = 1 if bad else 3 if any(r.startswith("not here") for r in results) else 0
        self.found |= {"wall_s": round(self._limit_s - self.left_s(), 1), "exit_status": status}
        self._write()
        return status

    def _write(self) -> None:
        content = json.dumps(self.found, indent=1, default=float)
        self._out.write_text(content + "\n", encoding="utf-8")


def result_of(value: Any) -> str:
    """Return "ran", "not here: reason", or "failed: how", of a step or of one of its parts."""
    if isinstance(value, dict):
        if NOT_HERE in value:
            return f"not here: {value[NOT_HERE]}"
        if FAILED in value:
            return f"failed: {value[FAILED]}"
        for part, inner in value.items():
            if isinstance(inner, dict) and FAILED in inner:
                return f"failed: {part}: {inner[FAILED]}"
    return "ran"


def run_process(command: Sequence[str], seconds: float, out: Path) -> Any:
    """Return what a process wrote to `out`, and how it ended if it did not end well."""
    out.unlink(missing_ok=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its own children end with it
    )
    try:
        printed = process.communicate(timeout=seconds)[0]
        ended = f"exit status {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, ended = process.communicate()[0], f"stopped after {seconds:.0f} s"
    value = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    return {**value, FAILED: ended, "printed": printed[-2000:]} if ended else value


def build_kernel(capability: str | None, scratch: Path) -> dict[str, str]:
    """Build the CUDA kernel, for this GPU or else to look whether it compiles; check that the CPU
    kernel is still the one that scores."""
    implementation = (sys.executable, "-c", "import cpp_ext; print(cpp_ext.implementation())")
    before = output_of(*implementation)
    if capability:  # where the server looks for it
        target = [str(ROOT / "cpp_ext" / "_score_cuda.so"), capability]
    else:
        target = [str(scratch / "_score_cuda.so"), "90"]
    command = ["bash", str(ROOT / "cpp_ext" / "build_cuda.sh"), *target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    printed = (done.stdout + done.stderr).strip()
    after = output_of(*implementation)
    found = {"cpu_kernel": after, "printed": printed}
    if done.returncode:
        return found | {FAILED: f"exit status {done.returncode}"}
    if before != after:
        return found | {FAILED: f"scoring on the CPU was {before} before"}
    return found


def export_bundle(bundle: Path, seconds: float) -> dict[str, Any]:
    """Export the checkpoint with an fp16 graph and, if it can be built here, a plan."""
    if not (CHECKPOINT / "manifest.json").is_file():
        return {FAILED: f"{CHECKPOINT} holds no checkpoint; `make checkpoint` makes one"}
    command = [sys.executable, "-m", "export", "--checkpoint", str(CHECKPOINT)]
    command += ["--out", str(bundle), "--formats", FORMATS]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode:
        return {FAILED: done.stderr[-2000:]}
    return {"printed": done.stdout.splitlines()}


def sanitize(seconds: float, folder: Path) -> dict[str, Any]:
    """Run the kernel's small cases under compute-sanitizer, its tools side by side."""

    def check(tool: str) -> Any:
        out = folder / f"{tool}.json"
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        command += [sys.executable, "-m", "bench.gpu.kernel", str(out), "--quick"]
        return run_process(command, seconds, out)

    with ThreadPoolExecutor(len(SANITIZERS)) as pool:
        return dict(zip(SANITIZERS, pool.map(check, SANITIZERS), strict=True))


def differences(folder: Path) -> dict[str, Any]:
    """Compare each baseline's answers with those of the fp32 graph on the CPU, and those of one
    request alone with those of the same request among others."""
    exact_file = folder / "forward cpu-fp32.npz"
    if not exact_file.is_file():
        return {FAILED: "the fp32 graph gave no answers on the CPU"}
    exact, found = dict(np.load(exact_file)), {}
    for name in BASELINES:
        file = folder / f"forward {name}.npz"
        if not file.is_file():
            continue
        own = dict(np.load(file))
        apart = [np.abs(own[k] - exact[k]) for k in own if k in exact]
        joined = [np.abs(v - own[f"p{k[5:]}"][:1]) for k, v in own.items() if k.startswith("alone")]
        several = [k for k in own if k in exact and k[0] == "p" and exact[k].shape[1] > 1]
        same = [(own[k].argmax(1) == exact[k].argmax(1)).mean() for k in several]
        found[name] = {
            "nan": bool(any(np.isnan(v).any() for v in own.values())),
            "largest": max((float(d.max()) for d in apart), default=None),
            "mean": float(np.mean([d.mean() for d in apart])) if apart else None,
            "same_first_choice": float(np.mean(same)) if same else None,
            "alone_or_joined": max((float(d.max()) for d in joined), default=None),
        }
    return found


def main() -> int:
    """Run the steps; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the JSON file")
    parser.add_argument("--bundle", type=Path, help="measure this one, rather than export one")
    parser.add_argument("--limit", type=float, default=280.0, help="seconds of the whole run")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the times of one step")
    parser.add_argument("--shapes", type=int, default=20, help="of requests that are compared")
    parser.add_argument("--steps", nargs="*", default=[], help="these and no others")
    parser.add_argument("--libraries", default=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run = Run(options.out, options.limit, options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = options.bundle or folder / "bundle"
        reason_for = partial(why_not, bundle=bundle, stand_in=options.libraries != LIBRARIES)

        def process(name: str, limit_s: float, needs: str, *command: str) -> None:
            """Run a module of bench.gpu; {} in the command is its output file."""
            out = folder / f"{name}.json"
            filled = [str(out) if word == "{}" else word for word in command]
            filled = [sys.executable, "-m", *filled, "--libraries", options.libraries]
            run.step(name, limit_s, lambda s: run_process(filled, s, out), reason_for(needs))

        run.step("machine", 30, lambda _: describe())
        no_nvcc = "" if shutil.which("nvcc") else "no nvcc"
        capability = present_capability()
        run.step("build", 90, lambda _: build_kernel(capability, folder), no_nvcc)
        if options.bundle is None:
            run.step("export", 120, lambda s: export_bundle(bundle, s))
        times = ("--seconds", str(options.seconds))
        quick = () if options.libraries == LIBRARIES else ("--quick",)  # a fake is slow
        process("kernel", 40, "kernel", "bench.gpu.kernel", "{}", *times, *quick)
        for name, needs in BASELINES.items():
            command = ("bench.gpu.forward", name, str(bundle), "{}", *times)
            process(f"forward {name}", 60, needs, *command, "--shapes", str(options.shapes))
        run.step("differences", 10, lambda _: differences(folder))
        few = () if options.libraries == LIBRARIES else ("--connections", "1", "2")
        for device, needs in DEVICES.items():
            command = ("bench.gpu.server", device, str(bundle), "{}", *times, *few)
            process(f"server {device}", 60, needs, *command)
        no_checker = "" if shutil.which("compute-sanitizer") else "no compute-sanitizer"
        reason = why_not("kernel", bundle, stand_in=False) or no_checker
        run.step("sanitizers", 40, lambda s: sanitize(s, folder), reason)
        run.step(
            "gpu at the end", 10, lambda _: gpu_state(), why_not("gpu", bundle, stand_in=False)
        )
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
