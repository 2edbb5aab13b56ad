"""Compare what bench.compare measured with the targets of latency and throughput."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.baselines import (
    COUNTED,
    FULL_DEPTH,
    FUSED,
    KERNEL,
    LENGTH,
    LLAMA_CPP,
    NUMPY,
    ONE_BY_ONE,
    ONE_THREAD,
    OPENVINO,
    PRODUCTS,
    REFERENCE,
    TOGETHER,
)
from bench.peers.openvino import NUMBERS
from bench.report import Target
from engine.inference.fused import FAST_PATHS

AMX, BF16, VNNI = (FUSED.format(path) for path in FAST_PATHS)
NO_PATH = "this processor or bundle has no such path"
QUICK = "not measured with --quick"
ELSEWHERE = (
    ("on AVX2 alone: speedup over ONNX Runtime", ">= 1",
     "ONNX Runtime is chosen there: tests/inference/test_fused.py"),
    ("overload, soak and swaps under load: targets missed", "<= 0",
     "python -m tests.reliability.overload, .soak; python -m bench.swaps"),
    ("AUC of the served format relative to fp32", ">= -0.001",
     "python -m training.evaluation.evaluate"),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one run measured.

    ms: baseline -> median milliseconds. busy: the same while a neighbor keeps all cores busy. live:
    see compare.served. agreement: see bench.agreement. memory_kb: of a candidate, at 1,000.
    size_mb: of the int8 backbone at 12 layers. skipped: baseline -> reason. wall_s: of --quick.
    """

    ms: Mapping[str, float]
    busy: Mapping[str, float]
    live: Mapping[str, Any]
    agreement: Mapping[str, float]
    memory_kb: float
    depth: int
    size_mb: float | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    wall_s: float | None = None

    def over(self, one: str, other: str) -> float | None:
        """Return how many times as long `one` takes as `other`, or None."""
        known = one in self.ms and other in self.ms
        return self.ms[one] / self.ms[other] if known else None

    def served(self) -> str:
        """Return the name of the fused path that serves here, or ONNX Runtime's int8 graph."""
        return next((name for name in (AMX, BF16, VNNI) if name in self.ms), "int8")

    def best_openvino(self) -> str:
        """Return the name of its faster number format, or of the first if none ran."""
        names = [OPENVINO.format(number) for number in NUMBERS]
        return min(names, key=lambda name: self.ms.get(name, float("inf")))


def targets_of(found: Measured) -> list[Target]:
    """Return every target with its value, or with the reason why it was not measured here."""
    return [
        *of_forward(found),
        *of_serving(found),
        *of_peers(found),
        *(Target(name, None, bound, reason) for name, bound, reason in ELSEWHERE),
    ]


def of_forward(found: Measured) -> list[Target]:
    """Return the targets of the fused forward pass: 128 tokens, 20 candidates."""
    over, busy, agreement = found.over, found.busy, found.agreement
    openvino = found.best_openvino()
    served = found.served()
    path, growth = served.partition(", ")[2], over(*(COUNTED.format(served, n) for n in (100, 1)))
    growth = growth and growth / ((LENGTH + 100) / (LENGTH + 1))
    from_fp32 = agreement.get("amx-bf16: p from fp32")
    batch = over(*(name.format(served) for name in (ONE_BY_ONE, TOGETHER)))
    company = agreement.get(f"{path}: p alone or in a batch")
    return [
        Target(f"{AMX}: speedup over int8", over("int8", AMX), ">= 4.5", NO_PATH),
        Target(
            f"{served}: speedup over OpenVINO's best",
            over(openvino, served),
            ">= 3",
            found.skipped.get(openvino, NO_PATH),
        ),
        Target(
            f"{ONE_THREAD.format(AMX)}: speedup over int8 with two",
            over("int8", ONE_THREAD.format(AMX)),
            ">= 3",
            NO_PATH,
        ),
        Target(
            f"{AMX}: time / time of its products alone",
            over(AMX, PRODUCTS.format(AMX)),
            "<= 2.3",
            NO_PATH,
        ),
        Target(f"{BF16}: speedup over int8", over("int8", BF16), ">= 3", NO_PATH),
        Target(f"{BF16}: largest difference of p from fp32", from_fp32, "<= 0.003", NO_PATH),
        Target(f"{VNNI}: speedup over int8", over("int8", VNNI), ">= 1.9", NO_PATH),
        *(
            Target(f"{name}, with a busy neighbor: speedup over int8", busy["int8"] / ms, ">= 1")
            for name, ms in busy.items()
            if name != "int8"
        ),
        Target(f"{served}: 100 candidates / 1, relative to tokens", growth, "<= 1.05", NO_PATH),
        Target(f"{served}: 8 mixed lengths, batch over one by one", batch, ">= 1.3", NO_PATH),
        Target(f"{served}: p alone or in a batch, largest difference", company, "<= 1e-4", NO_PATH),
    ]


def of_serving(found: Measured) -> list[Target]:
    """Return the targets of the server."""
    live = found.live
    one, eight, before = live["one"], live["eight"], live["eight_by_onnxruntime"]
    forward = one["phases_ms"]["inference"]
    share = one["phases_ms"]["scoring"] / one["phases_ms"]["total"]
    together = eight["per_second"] * forward / 1000
    gain, bound = eight["per_second"] / before["per_second"], 2.5 if AMX in found.ms else 1.5
    return [
        Target("gRPC p50 minus forward pass, ms", one["p50_ms"] - forward, "<= 1.0"),
        Target("8 connections: throughput over that of cpu-onnx", gain, f">= {bound}"),
        Target("throughput of 8 connections / forward pass alone", together, ">= 0.95"),
        Target("KB of memory per candidate, at 1,000", found.memory_kb, "<= 4"),
        Target("share of the kernel in a decision", share, "<= 0.02"),
        Target("resident memory of the server, MB", live["resident_mb"], "<= 350"),
        Target("start until ready, s", live["ready_s"], "<= 3"),
        Target("wall time of --quick, s", found.wall_s, "<= 60", "only of --quick"),
    ]


def of_peers(found: Measured) -> list[Target]:
    """Return the targets of ONNX Runtime's graphs, and compared with other pipelines."""
    over, skipped, served = found.over, found.skipped, found.served()
    full, equal = (REFERENCE.format(d) for d in (FULL_DEPTH, found.depth))
    growth = over("int8, 100 candidates", "int8, 1 candidate")
    growth = growth and growth / ((LENGTH + 100) / (LENGTH + 1))
    return [
        Target(
            "fp32: speedup over the reference pipeline at equal depth",
            over(equal, "fp32"),
            ">= 15",
            skipped.get(equal, ""),
        ),
        Target(
            f"{served}: speedup over the reference pipeline at full depth",
            over(full, served),
            ">= 200",
            skipped.get(full, QUICK),
        ),
        Target(
            "fp32: time / time of its products alone",
            over("fp32", "products alone, fp32"),
            "<= 1.1",
        ),
        Target("int8: speedup over fp32", over("fp32", "int8"), ">= 1.8"),
        Target(
            f"{served}: speedup over llama.cpp",
            over(LLAMA_CPP, served),
            ">= 2.5",
            skipped.get(LLAMA_CPP, ""),
        ),
        Target("int8: 100 candidates / 1, relative to tokens", growth, "<= 1.05"),
        Target("kernel: speedup over NumPy at 1,024 rows", over(NUMPY, KERNEL), ">= 20"),
        Target("int8 backbone at 12 layers, MB", found.size_mb, "<= 90", QUICK),
    ]
