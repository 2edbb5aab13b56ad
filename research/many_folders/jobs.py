"""Many runs side by side on one device, from a list of jobs.

    python -m research.many_folders.jobs --jobs FILE --payload DIR --states DIR --out DIR \
        --workers 5 --seconds 200

A job is a JSON object: `config` of a run (research/many_folders/run.py), or `mean` (names of runs,
with
`shares`), or `cut` (a run's name) with `rank`; `full` for test rows and more memory, `save` to keep
the weights for later jobs, `out` to write an adapter. Jobs are begun in order; one that names
another waits for it. Results go to results.jsonl as they come.
"""

from __future__ import annotations

import argparse
import json
import queue
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from research.many_folders.data.folders import load_pack
from research.many_folders.evaluate import fit_match, report
from research.many_folders.model import FusedModel
from research.many_folders.run import WITHOUT_OUTCOMES, Run, RunConfig
from research.many_folders.weights import (
    Weights,
    cut,
    load_weights,
    mean_state,
    model_of,
    tuned_state,
)
from training.weights.adapter import SCALE

WAIT = 0.5
GIVEN_UP = 3  # failures before any success
SPARE = 12.0  # seconds before the end in which no run goes on training


class Bench:
    """What a worker holds from job to job."""

    def __init__(self, payload: Path, states: Path, out: Path, end: float) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans again for every shape
        self.folders = load_pack(payload / "data.npz", self.device)
        self.weights: Weights = load_weights(payload / "weights.npz", self.device)
        self.states, self.out, self.end = states, out, end
        most = max(int(f.tokens.max()) for f in self.folders.values())
        assert most < len(self.weights.base["model.embed_tokens.weight"]), "another vocabulary"
        self.teacher = model_of(self.weights, "shipped", self.device).eval()

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The weights of a run, waited for while there is time."""
        if name in ("shipped", "base"):
            return tuned_state(model_of(self.weights, name, self.device))
        path = self.states / f"{name}.pt"
        while not path.exists():
            if time.time() > self.end - SPARE:
                raise TimeoutError(name)
            time.sleep(WAIT)
        found: dict[str, torch.Tensor] = torch.load(path, map_location=self.device)
        return found

    def model(self, state: dict[str, torch.Tensor]) -> FusedModel:
        """A model with this state."""
        model = model_of(self.weights, "shipped", self.device)
        model.load_state_dict(state, strict=False)
        return model

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job's result."""
        if "mean" in job:
            shares = job.get("shares") or [1 / len(job["mean"])] * len(job["mean"])
            config = RunConfig(**job["config"])
            model = self.model(mean_state([self.state(n) for n in job["mean"]], shares))
            if not job.get("own_match"):
                self.fit(model, config)
            found: dict[str, Any] = {}
        elif "cut" in job:
            config = RunConfig(**job["config"])
            model = self.model(self.state(job["cut"]))
            found = {"rank": job["rank"]}
            factors = cut(model, self.weights, job["rank"])
            if job.get("out"):
                self.write(config.name, model, factors)
        else:
            config, model, found = self.run(job)
        if job.get("save"):
            path = self.states / f"{config.name}.pt"
            torch.save(tuned_state(model), path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        began = time.time()
        if job.get("exact"):
            model.kind = torch.float32
        refit = not job.get("as_is")
        start, full = self.weights.start, bool(job.get("full"))
        found |= report(
            model.eval(),
            self.folders,
            start,
            config.held_out,
            config.counts,
            full,
            refit,
            config.inside,
            self.out / f"{config.name}.rows.npz" if job.get("rows") else None,
        )
        found["judged_seconds"] = round(time.time() - began, 2)
        return {"name": config.name, "config": asdict(config), "full": full, **found}

    def run(self, job: dict[str, Any]) -> tuple[RunConfig, FusedModel, dict[str, Any]]:
        """Train."""
        config = RunConfig(**job["config"])
        if config.begin in ("shipped", "base"):
            model = model_of(self.weights, config.begin, self.device)
        else:
            model = self.model(self.state(config.begin))
        if not config.epochs:
            self.fit(model, config)
            return config, model, {}
        self.fit(model, config)
        run = Run(config, model.train(), self.folders, self.weights.start, self.teacher)
        return config, model, run.train(self.end - SPARE)

    def fit(self, model: FusedModel, config: RunConfig) -> None:
        """Fit the match of a model whose match was not trained."""
        names = [n for n in self.folders if n not in config.held_out and n not in WITHOUT_OUTCOMES]
        fit_match(model.match, model.eval(), self.folders, self.weights.start, names)

    def write(self, name: str, model: FusedModel, factors: dict[str, Any]) -> None:
        """A file with the adapter in int8, the connector for plain representations, the match."""
        start = self.weights.start
        weight = (model.connector.weight / start.scale).detach()
        bias = (model.connector.bias - weight @ start.shift).detach()
        arrays: dict[str, Any] = {
            "connector/weight": weight.half().cpu().numpy(),
            "connector/bias": bias.cpu().numpy(),
        }
        for key, value in model.match.state_dict().items():
            arrays[f"match/{key}"] = value.half().cpu().numpy()
        for key, value in factors.items():
            wide = value.astype(np.float32)
            axis = 1 if ".lora_A." in key else 0
            scale = np.abs(wide).max(axis=axis, keepdims=True) / 127 + 1e-12
            arrays[f"{key}{SCALE}"] = scale.reshape(-1).astype(np.float32)
            arrays[key] = np.round(wide / scale).astype(np.int8)
        np.savez(self.out / f"{name}.npz", **arrays)


def work(number: int, jobs: Any, results: Any, arguments: argparse.Namespace, end: float) -> None:
    """A worker: job after job until none is left or time is up."""
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.payload, arguments.states, arguments.out, end)
    results.put({"worker": number, "ready": round(time.time() - arguments.began, 1)})
    while time.time() < end - SPARE - 4:
        job = jobs.get()
        if job is None:
            return
        name = job["config"]["name"]
        began = round(time.time() - arguments.began, 1)
        try:
            found = bench.do(job)
        except Exception:  # noqa: BLE001 - a failed job must not stop the others
            found = {"name": name, "error": traceback.format_exc()[-1500:]}
        found |= {"worker": number, "from": began, "to": round(time.time() - arguments.began, 1)}
        results.put(found)


def main() -> None:
    """Start workers, collect results until all are done or time is up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=Path, required=True)
    parser.add_argument("--payload", type=Path, required=True)
    parser.add_argument("--states", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=200.0)
    arguments = parser.parse_args()
    arguments.began = time.time()
    end = arguments.began + arguments.seconds
    arguments.states.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    listed = json.loads(arguments.jobs.read_text(encoding="utf-8"))
    context = mp.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    for job in [*listed, *[None] * arguments.workers]:
        jobs.put(job)
    workers = [
        context.Process(target=work, args=(i, jobs, results, arguments, end), daemon=True)
        for i in range(arguments.workers)
    ]
    for worker in workers:
        worker.start()
    done = failed = 0
    with (arguments.out / "results.jsonl").open("a") as file:
        while done < len(listed) and time.time() < end and not failed == done == GIVEN_UP:
            try:
                found = results.get(timeout=1.0)
            except queue.Empty:
                if not any(w.is_alive() for w in workers):
                    break
                continue
            file.write(json.dumps(found, default=float) + "\n")
            file.flush()
            if "name" in found:
                done += 1
                failed += "error" in found
                print(line_of(found), flush=True)
            else:
                print(found, flush=True)
    for worker in workers:
        worker.terminate()
    print(f"{done} of {len(listed)} jobs in {time.time() - arguments.began:.0f} s", flush=True)


def line_of(found: dict[str, Any]) -> str:
    """A result in a line: AUC of each folder (held_out ones with AUC of 50 and 200 comparisons)."""
    if "error" in found:
        return f"{found['name']}: ERROR {found['error'][-700:]}"
    parts = []
    for name, figures in found["folders"].items():
        key = next(k for k in ("held_out", "test", "validation") if k in figures)
        text = f"{name[:6]} {key[0]} {figures[key]['auc']:.3f}"
        if key == "held_out":
            memory = figures["memory"]
            warm = "/".join(
                f"{memory[n]['cold']['auc']:.3f}>{memory[n]['warm']['auc']:.3f}"
                for n in ("50", "200", "1000")
                if n in memory
            )
            text += f" ({warm}) cells {figures[key]['cells']:.2f} ll {figures[key]['log_loss']:.3f}"
            for head in ("own", "ridge"):
                best = figures["match"][head]
                text += f" {head} {best['0.08 4.0'][0]:.3f}"
        parts.append(text)
    head = f"{found['name']} {found['from']}-{found['to']}s steps {found.get('steps')}"
    easy = {k[:4]: v[0] for k, v in found.get("everyday", {}).items()}
    return f"{head} train {found.get('seconds')}s | {' | '.join(parts)} | {easy}"


if __name__ == "__main__":
    main()
