"""The parts of telemetry by themselves: interceptor, drift, labels, log, audit file, start."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.candidate import Candidate
from engine.api.errors import ModelsatError
from engine.api.policy import DecisionKind, Policy
from engine.api.request_context import DECISION, TRACE, trace_of
from engine.routing.decision import Decision, PromptInfo, RankingEntry
from engine.serving.rpc.interceptors import TelemetryInterceptor
from engine.serving.settings import Settings
from engine.serving.telemetry import Telemetry, logs, open_telemetry
from engine.serving.telemetry.adaptation_samples import adaptation_samples
from engine.serving.telemetry.audit import AuditLog
from engine.serving.telemetry.metrics import Metrics, Sources, hash_48
from tests.support.fake_adaptation import FakeAdaptation, FakeSource

TIMING = dict.fromkeys(("tokenize", "queue", "inference", "scoring", "selection", "total"), 0.001)


def decision(
    chosen: str = "a", revision: int = 1, identifier: str = "d" * 32, kind: DecisionKind = "ranked"
) -> Decision:
    ranking = tuple(
        RankingEntry(Candidate(c, ()), p, None, p) for c, p in ((chosen, 0.75), ("z", 0.25))
    )
    info = PromptInfo(7, truncated=False, ood_score=0.5)
    return Decision(
        ranking[0].candidate, "why", ranking, {}, revision, info, kind, TIMING, identifier
    )


# --- the interceptor, around methods of every kind ---------------------------------------------


HANGING: list[bool] = []  # a call that hangs, from when its handler runs


async def unary(request: bytes, context: Any) -> bytes:
    if request == b"abort":
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
    if request == b"raise":
        raise ValueError("boom")
    if request == b"hang":
        HANGING.append(True)
        await asyncio.sleep(60)
    return request


async def yielded(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(2):
        yield await unary(request, context)


async def written(request: bytes, context: Any) -> None:
    await context.write(await unary(request, context))


async def collected(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"".join([await unary(r, context) async for r in requests])


async def echoed(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield await unary(request, context)


HANDLERS = {
    "unary": grpc.unary_unary_rpc_method_handler(unary),
    "yielded": grpc.unary_stream_rpc_method_handler(yielded),
    "written": grpc.unary_stream_rpc_method_handler(written),
    "collected": grpc.stream_unary_rpc_method_handler(collected),
    "echoed": grpc.stream_stream_rpc_method_handler(echoed),
}


async def ask(channel: grpc.aio.Channel, name: str, request: bytes, timeout: float | None) -> None:
    async def one() -> AsyncIterator[bytes]:
        yield request

    handler, path = HANDLERS[name], f"/test.Test/{name}"
    kind = f"{'stream' if handler.request_streaming else 'unary'}_"
    kind += "stream" if handler.response_streaming else "unary"
    call = getattr(channel, kind)(path)(
        one() if handler.request_streaming else request, timeout=timeout
    )
    if handler.response_streaming:
        assert [m async for m in call]
    else:
        await call


async def test_every_kind_of_method_is_counted_by_how_it_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    server = grpc.aio.server(interceptors=[TelemetryInterceptor(Telemetry(metrics))])
    handlers = grpc.method_handlers_generic_handler("test.Test", HANDLERS)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ends = {b"fine": "OK", b"abort": "NOT_FOUND", b"raise": "UNKNOWN", b"hang": "DEADLINE_EXCEEDED"}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in HANDLERS:
            for request in ends:
                with suppress(grpc.RpcError):
                    await ask(channel, name, request, 0.8 if request == b"hang" else None)
            HANGING.clear()
            gone = asyncio.create_task(ask(channel, name, b"hang", None))
            while not HANGING:
                await asyncio.sleep(0.01)
            gone.cancel()
    await server.stop(5)
    for name in HANDLERS:
        for code in (*ends.values(), "CANCELLED"):
            labels = {"method": f"test.Test/{name}", "code": code}
            count = metrics.registry.get_sample_value("modelsat_requests_total", labels)
            assert count == 1, (name, code, count)


# --- metrics ----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"))), max_size=30)
)
def test_labels_are_those_registered_now_and_other(steps: list[tuple[str, set[str]]]) -> None:
    metrics = Metrics()
    now: set[str] = set()
    metrics.watch(Sources(lambda: now, {}))
    for revision, (chosen, present) in enumerate(steps):
        now = present
        metrics.decided(decision(chosen, revision))
    series = {
        s.labels["candidate"]
        for f in metrics.registry.collect()
        for s in f.samples
        if s.name == "modelsat_selections_total"
    }
    assert series <= now | {"other"}
    total = metrics.registry.get_sample_value("modelsat_decisions_total", {"kind": "ranked"})
    assert total == len(steps)


def test_decisions_that_the_adaptation_changed_are_counted() -> None:
    metrics = Metrics()
    for adaptation, unadapted in (("", ""), ("fit-1", "a"), ("fit-1", "z"), ("fit-2", "z")):
        metrics.decided(replace(decision(), adaptation_id=adaptation, unadapted=unadapted))
    drawn = replace(decision(), adaptation_id="fit-2", unadapted="z", kind="explored")
    metrics.decided(drawn)  # not changed by the adaptation, but by the draw
    value = metrics.registry.get_sample_value
    assert value("modelsat_adapted_decisions_total", {"selection": "changed"}) == 2
    assert value("modelsat_adapted_decisions_total", {"selection": "same"}) == 1


def test_what_was_learned_is_exported_by_provenance_and_reason() -> None:
    source = FakeSource([FakeAdaptation(id="fit-1")], frozen=True)
    metrics = Metrics()
    metrics.watch(Sources(tuple, adaptation_samples(source)))
    value = metrics.registry.get_sample_value

    def learned(name: str, **labels: str) -> float | None:
        return value(f"modelsat_adaptation_{name}", labels)

    assert (learned("active"), learned("frozen"), learned("instructions")) == (1, 1, 200)
    assert learned("outcomes", provenance="comparison") == 400
    assert learned("outcomes", provenance="chosen") == 0
    assert learned("unused_outcomes", reason="candidate not registered") == 3
    losses = [learned("log_loss", probabilities=at) for at in ("before", "after")]
    assert losses == [0.6, 0.5]
    assert learned("newest_outcome_timestamp_seconds") == 1.8e9
    assert learned("hash") == hash_48("fit-1")
    source.fits.clear()
    assert (learned("active"), learned("hash"), learned("instructions")) == (0, 0, 0)
    metrics.watch(Sources(tuple, adaptation_samples(None)))
    assert (learned("active"), learned("frozen")) == (0, 0)


def test_probabilities_of_a_fallback_are_not_observed() -> None:
    metrics = Metrics()
    metrics.decided(decision(kind="fallback"))
    value = metrics.registry.get_sample_value
    selected, eligible = {"population": "selected"}, {"population": "eligible"}
    assert value("modelsat_probability_count", eligible) == 0
    metrics.decided(decision())
    assert value("modelsat_probability_sum", selected) == 0.75
    assert value("modelsat_probability_sum", eligible) == 0.5
    assert value("modelsat_ood_score_sum") == 2 * 0.5
    assert value("modelsat_decisions_total", {"kind": "fallback"}) == 1


def test_telemetry_that_fails_does_not_fail_the_request(caplog: pytest.LogCaptureFixture) -> None:
    """A decision without a ranking cannot be; whatever else goes wrong must end like this."""
    impossible = replace(decision(), ranking=())
    Telemetry(Metrics()).decided(impossible, Policy(), "text", dry_run=False)
    assert "telemetry of a decision failed: IndexError" in caplog.text


# --- the log ----------------------------------------------------------------------------------


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Puts the process's log back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_has_ids_and_fields_and_no_text_of_an_exception(
    form: str, root_logger: None
) -> None:
    stream, private = io.StringIO(), " ".join(["what", "a", "caller", "sent"])
    logs.configure(form, "info", stream)
    TRACE.set("c" * 32)
    decision_id = "0123456789abcdef" * 2
    DECISION.set(decision_id)
    assert DECISION.get() == decision_id
    try:
        try:
            raise ValueError(private)
        except ValueError as error:
            raise KeyError(private) from error
    except KeyError:
        logging.getLogger("x").exception("failed %d\ntimes", 2, extra={"rows": 3})
    logging.getLogger("x").debug("too low")
    printed = stream.getvalue()
    assert private not in printed
    assert "ValueError" in printed.partition("KeyError")[0]
    if form == "json":
        (line,) = [json.loads(raw) for raw in printed.splitlines()]
        assert (line["message"], line["rows"], line["level"]) == ("failed 2\ntimes", 3, "ERROR")
        assert (line["decision_id"], line["trace_id"]) == (decision_id, "c" * 32)
    else:
        assert f"rows=3 decision_id={decision_id} trace_id={'c' * 32}" in printed


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", "a" * 32),
        (f"00-{'0' * 32}-{'b' * 16}-01", ""),
        (f"00-{'a' * 32}-{'0' * 16}-01", ""),
        (f"ff-{'a' * 32}-{'b' * 16}-01", ""),
        (f"00-{'A' * 32}-{'b' * 16}-01", ""),
        ("", ""),
    ],
)
def test_a_trace_id_is_read_from_a_valid_traceparent_alone(header: str, trace: str) -> None:
    assert trace_of(header) == trace


# --- the audit file ----------------------------------------------------------------------------


def offer(audit: AuditLog, count: int) -> None:
    for i in range(count):
        audit.offer(decision(identifier=f"{i:032}"), Policy(), "", "a text")


def test_about_the_asked_share_is_kept(tmp_path: Path) -> None:
    random.seed(1)
    audit = AuditLog(tmp_path / "a.jsonl", 0.1, with_text=False)
    offer(audit, 1000)
    audit.stop()
    assert 60 < audit.records["written"] < 140
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == audit.records["written"]


def test_every_line_is_json_for_any_reader(tmp_path: Path) -> None:
    """Infinity is no JSON, but a valid willingness to pay."""
    audit = AuditLog(tmp_path / "a.jsonl", 1, with_text=False)
    for value in (math.inf, 0.01):
        policy = Policy("willingness_to_pay_usd", value)
        audit.offer(decision(identifier="0" * 32), policy, "", "")
    audit.stop()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [each["policy"]["value"] for each in read] == [None, 0.01]


def test_lines_follow_a_rename_and_survive_a_missing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    audit = AuditLog(folder / "a.jsonl", 1, with_text=False)

    def settled(**counts: int) -> None:
        deadline = time.monotonic() + 20
        while {k: audit.records[k] for k in counts} != counts:
            assert time.monotonic() < deadline, audit.records
            time.sleep(0.01)

    offer(audit, 2)
    settled(written=2)
    folder.rename(tmp_path / "old")
    offer(audit, 3)
    settled(failed=3)
    folder.mkdir()
    offer(audit, 1)
    settled(written=3)
    audit.stop()
    assert len((tmp_path / "old" / "a.jsonl").read_text().splitlines()) == 2
    assert len((folder / "a.jsonl").read_text().splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    audit = AuditLog(Path("/dev/full"), 1, with_text=False)
    offer(audit, 20)
    audit.stop()
    assert (audit.records["failed"], audit.records["written"]) == (20, 0)
    said = [r.getMessage() for r in caplog.records if "/dev/full" in r.getMessage()]
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_a_disk_that_hangs_costs_lines_and_no_request(tmp_path: Path) -> None:
    """A pipe without a reader blocks the writer; offer() goes on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    audit = AuditLog(pipe, 1, with_text=False)
    offer(audit, 5000)
    assert audit.records["dropped"] > 0
    os.set_blocking(reader, True)
    parts: list[bytes] = []

    def read() -> None:
        while part := os.read(reader, 1 << 16):
            parts.append(part)

    reading = threading.Thread(target=read)
    reading.start()
    audit.stop()
    reading.join()
    os.close(reader)
    lines = b"".join(parts).splitlines()
    assert len(lines) == audit.records["written"]
    assert audit.records["written"] + audit.records["dropped"] == 5000
    assert all(json.loads(line)["kind"] == "ranked" for line in lines)


# --- start ------------------------------------------------------------------------------------


def test_unusable_settings_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ModelsatError, match="set --metrics-address to another"):
            open_telemetry(Settings(metrics_address=address))
    with pytest.raises(ModelsatError, match=r"--audit-log: .* is not writable \(No such file"):
        open_telemetry(Settings(audit_log=tmp_path / "missing" / "a.jsonl"))
    monkeypatch.delitem(sys.modules, "engine.serving.telemetry.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ModelsatError, match=r"pip install 'modelsat\[otel\]'"):
        open_telemetry(Settings(otlp_endpoint="127.0.0.1:4317"))


def test_opentelemetry_is_not_imported_unless_it_is_used() -> None:
    code = (
        "import sys, engine.serving.server\nsys.exit(any('telemetry' in m for m in sys.modules if"
    )
    code += " not m.startswith('engine.')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


async def test_a_collector_that_is_down_does_not_hold_up_the_end() -> None:
    """Nothing listens on port 1; stop() gives up on it."""
    telemetry = open_telemetry(Settings(otlp_endpoint="127.0.0.1:1"))
    call = telemetry.begin("modelsat.v1.RouterService/Route", {})
    telemetry.decided(decision(), Policy(), "text", dry_run=False)
    telemetry.answered(call, "OK", 0)
    await asyncio.wait_for(telemetry.stop(), 30)
