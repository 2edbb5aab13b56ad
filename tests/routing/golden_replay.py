"""Play the steps of the golden file against real servers and return what they decide.

    python -m tests.routing.golden_replay    write the decisions again, from the file's requests

golden_decisions.json holds the requests and what the bundle's int8 graph decides, which hangs on
the processor; golden_decisions_fp32.json what its float32 graph decides, which does not. Record
again only where a decision is meant to change, and say in the commit which ones and why.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.pb import candidate_service_pb2 as candidates_pb
from engine.pb import candidate_service_pb2_grpc as candidates_grpc
from engine.pb import external_processor_pb2_grpc as extproc_grpc
from engine.pb import router_service_pb2 as router_pb
from engine.pb import router_service_pb2_grpc as router_grpc
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_encoder
from engine.registry.stores.base import Change
from engine.registry.stores.sqlite import SqliteStore
from tests.routing import golden_adapter as adapter
from tools.processes import BUNDLE, Server, serving

CANDIDATES_OF_0_1 = 15

INT8 = Path(__file__).with_name("golden_decisions.json")
FP32 = Path(__file__).with_name("golden_decisions_fp32.json")
FP32_DEVICE, ONNX_DEVICE = "cpu-fp32", "cpu-onnx"
TIMEOUT_S = 60.0
# Levels of each file that have a line for each entry, down to a request or a decision.
DEPTHS = {INT8: 6, FP32: 3}
# Where an answer must come without scores: how much of the step's time to allow, in turn.
SHARES = (1.0, 0.5, 0.25, 0.12, 2.0, 4.0)
COPIES = 32
Step = dict[str, Any]
Decisions = list[dict[str, Any]]
# What bears on an int8 product: the same instructions give the same probabilities.
INT8_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")


def load(file: Path = INT8) -> dict[str, Any]:
    """Return what is in one of the two files."""
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def save(content: dict[str, Any], file: Path) -> None:
    """Write one of the two files, so that a change shows as a line."""
    file.write_text(_lines(content, DEPTHS[file]) + "\n", encoding="utf-8")


def _lines(value: Any, depth: int) -> str:
    """Like json.dumps, with a line for each entry of the outer `depth` levels."""
    if not value or depth == 0 or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    named = isinstance(value, dict)
    entries = [
        f"{json.dumps(key, ensure_ascii=False)}: {_lines(each, depth - 1)}"
        if named
        else _lines(each, depth - 1)
        for key, each in (value.items() if named else enumerate(value))
    ]
    opening, closing = "{}" if named else "[]"
    return f"{opening}\n" + ",\n".join(entries) + f"\n{closing}"


def processor() -> str:
    """Return this machine's processor: its name, and which int8 instructions it has."""
    about = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
        if ":" in line
    )
    known = set(about.get("flags", "").split())
    numbers = "/".join(about.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return " ".join([about.get("model name", "?"), numbers, *(f for f in INT8_FLAGS if f in known)])


def fill(path: Path) -> None:
    """Make a store of the candidates that version 0.1 had: the catalog's first."""
    manifest, arrays = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
    encoder = load_encoder(BUNDLE, arrays)
    store = SqliteStore(path, manifest.encoder_id, manifest.width)
    known = read_catalog(BUNDLE / "zoo.json")[:CANDIDATES_OF_0_1]
    store.apply(Change([(c, encoder.encode(c)) for c in known]), 0, "as version 0.1 had it")
    store.close()


def play(golden: dict[str, Any], device: str = "") -> Iterator[tuple[Step, Decisions]]:
    """Yield each step that decides something with its decisions, one server after another.

    device: of every server; empty leaves it as the file has it, or takes the int8 graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        for i, record in enumerate(golden["servers"]):
            store = Path(folder) / f"{i}.sqlite"
            fill(store)
            graph = {"device": ONNX_DEVICE}
            settings = graph | record["settings"] | ({"device": device} if device else {})
            with serving(store, *adapter.flags(settings)) as server, Player(server) as on:
                for each in golden["candidates"]:
                    on.change({"add": each}, golden["tasks"])
                for step in record["steps"]:
                    if step["via"] == "change":
                        on.change(step, golden["tasks"])
                    else:
                        yield step, on.decide(step)


class Player:
    """One server's connections. Use it as a context manager."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._channel = grpc.insecure_channel(server.address)
        self._router = router_grpc.RouterServiceStub(self._channel)
        self._candidates = candidates_grpc.CandidateServiceStub(self._channel)

    def __enter__(self) -> Player:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._channel.close()

    def change(self, step: Step, tasks: list[str]) -> None:
        """Change the table of candidates."""
        if "add" in step:
            request = candidates_pb.UpdateCandidateRequest(
                candidate=adapter.candidate(step["add"], tasks), allow_missing=True
            )
            request.update_mask.paths[:] = ["*"]
            self._candidates.UpdateCandidate(request, timeout=TIMEOUT_S)
        for identifier in step.get("remove", ()):
            name = adapter.PREFIX + identifier
            gone = candidates_pb.DeleteCandidateRequest(name=name)
            self._candidates.DeleteCandidate(gone, timeout=TIMEOUT_S)
        if "roll back to" in step:
            back = candidates_pb.RollbackRevisionRequest(revision=step["roll back to"])
            self._candidates.RollbackRevision(back, timeout=TIMEOUT_S)

    def decide(self, step: Step) -> Decisions:
        """Return the decision for each request of `step`, in order."""
        match step["via"]:
            case "route":
                return [self._route(request) for request in step["requests"]]
            case "batch":
                return self._batch(step["requests"], TIMEOUT_S)
            case "stream":
                return self._stream(step["requests"])
            case "ext_proc":
                return self._http(step["requests"])
            case "behind others":
                return [self._behind_others(request, step) for request in step["requests"]]
        raise ValueError(step["via"])

    def _route(self, neutral: Step) -> dict[str, Any]:
        request = adapter.route_request(neutral)
        try:
            return adapter.decision(self._router.Route(request, timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            return adapter.failure(error)

    def _batch(self, requests: list[Step], timeout_s: float) -> Decisions:
        asked = [adapter.route_request(each) for each in requests]
        batch = router_pb.BatchRouteRequest(requests=asked)
        answer = self._router.BatchRoute(batch, timeout=timeout_s)
        return [adapter.result(each) for each in answer.results]

    def _stream(self, requests: list[Step]) -> Decisions:
        asked = (
            router_pb.StreamRouteRequest(id=str(i), request=adapter.route_request(each))
            for i, each in enumerate(requests)
        )
        found = {a.id: a.result for a in self._router.StreamRoute(asked, timeout=TIMEOUT_S)}
        return [adapter.result(found[str(i)]) for i in range(len(requests))]

    def _http(self, requests: list[Step]) -> Decisions:
        decisions = []
        with grpc.insecure_channel(self._server.extproc_address) as channel:
            stub = extproc_grpc.ExternalProcessorStub(channel)
            for each in requests:
                answers = stub.Process(iter(adapter.http_request(each)), timeout=TIMEOUT_S)
                decisions.append(adapter.http_decision(list(answers)))
        return decisions

    def _behind_others(self, request: Step, step: Step) -> dict[str, Any]:
        """Ask behind long texts that keep the server busy, until it has no time for a score.

        Which of many requests still gets one depends on the machine, so `request` is asked COPIES
        times, and the first answer without scores counts.
        """
        found: dict[str, Any] = {}
        for share in SHARES:
            fillers = [
                {"text": {"repeat": f"{share} {i} The harbour was quiet. ", "times": 60}}
                for i in range(step["others"])
            ]
            try:
                asked = [*fillers[COPIES - 1 :], *[request] * COPIES]
                answers = self._batch(asked, step["seconds"] * share)[-COPIES:]
            except grpc.RpcError:
                continue  # the whole call ran out of time
            for found in answers:
                if found.get("kind") == "fallback" or "error" in found:
                    return found
        return found


def record() -> None:
    """Write the decisions of both files again, with the processor they were made on."""
    golden = load()
    for step, decisions in play(golden):
        step["decisions"] = decisions
    save({**golden, "processor": processor()}, INT8)
    save({step["name"]: decisions for step, decisions in play(golden, FP32_DEVICE)}, FP32)


if __name__ == "__main__":
    record()
