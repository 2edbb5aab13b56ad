"""What a real server tells about its work: /metrics, spans at a collector, log, audit file."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from engine.api.policy import Policy
from engine.pb import router_service_pb2 as rpb
from engine.pb import router_service_pb2_grpc
from engine.registry.catalog import read_catalog
from engine.registry.stores.base import RevisionId
from engine.serving.telemetry import revision_hash
from engine.serving.telemetry.metrics import METRICS
from modelsat import Client
from tests.support.otlp_collector import Collector, attributes, collecting
from tools.processes import BUNDLE, Server, serving

CATALOG = read_catalog(BUNDLE / "zoo.json")
SECRET = "zanzibar-quokka"
PHASE_SECONDS = "modelsat_decision_phase_duration_seconds"
ROUTE = "modelsat.v1.RouterService/Route"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-01")


@dataclass
class Observed:
    """A server with everything on."""

    server: Server
    collector: Collector
    audit: Path
    url: str

    def scrape(self) -> dict[str, float]:
        """'name{label="value"}' -> value, labels in order of their names."""
        with urllib.request.urlopen(self.url) as answer:
            text = answer.read().decode()
        samples = {}
        for family in text_string_to_metric_families(text):
            for s in family.samples:
                labels = ",".join(f'{k}="{v}"' for k, v in sorted(s.labels.items()))
                samples[f"{s.name}{{{labels}}}" if labels else s.name] = s.value
        return samples

    def route(self, request: rpb.RouteRequest, *headers: tuple[str, str]) -> rpb.RouteResponse:
        with grpc.insecure_channel(self.server.address) as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)
            return stub.Route(request, metadata=headers)

    def log(self) -> list[dict[str, Any]]:
        """What it logged; other lines are those that start prints."""
        lines = self.server.printed().splitlines()
        startup = re.compile(r"ready on |Non-default settings:|  \w+ = ")
        assert all(line.startswith("{") or startup.match(line) for line in lines), lines
        return [json.loads(line) for line in lines if line.startswith("{")]

    def audited(self, decision_id: str) -> dict[str, Any]:
        """The audit line of a decision, once it is there."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            lines = self.audit.read_text("utf-8").splitlines(True) if self.audit.exists() else ()
            for line in lines:
                if not line.endswith("\n"):
                    break  # a long line is being written
                entry: dict[str, Any] = json.loads(line)
                if entry["decision_id"] == decision_id:
                    return entry
            time.sleep(0.02)
        raise AssertionError("no audit line")


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    audit = folder / "audit.jsonl"
    with collecting() as collector:
        flags = ["--metrics-address", "127.0.0.1:0", "--otlp-endpoint", collector.address]
        flags += ["--log-format", "json", "--log-level", "debug"]
        flags += ["--audit-log", str(audit), "--audit-sample-rate", "1"]
        with serving(folder / "s.sqlite", *flags) as server:
            port = re.search(r"metrics on port (\d+)", server.printed())
            assert port is not None
            yield Observed(server, collector, audit, f"http://127.0.0.1:{port[1]}/metrics")


def text(words: str) -> rpb.RouteRequest:
    return rpb.RouteRequest(text=words)


# --- metrics ---------------------------------------------------------------------------------


def test_a_scrape_counts_what_was_asked(observed: Observed) -> None:
    before = observed.scrape()
    asked = ["What is a monad?", "Write a haiku about rain.", "What is a monad?"]
    answers = [observed.route(text(words)) for words in asked]
    observed.route(rpb.RouteRequest(text="What is a monad?", dry_run=True))
    with pytest.raises(grpc.RpcError):
        observed.route(text(" "))
    with grpc.insecure_channel(observed.server.address) as channel:
        for made_up in ("a", "b"):
            with pytest.raises(grpc.RpcError, match="not found"):
                channel.unary_unary(f"/modelsat.v1.RouterService/{made_up}")(b"")
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        watch.cancel()
    after = observed.scrape()

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert gained(f'modelsat_requests_total{{code="OK",method="{ROUTE}"}}') == 4
    assert gained(f'modelsat_requests_total{{code="INVALID_ARGUMENT",method="{ROUTE}"}}') == 1
    assert gained('modelsat_requests_total{code="UNIMPLEMENTED",method="unknown"}') == 2
    assert gained(f'modelsat_rpc_duration_seconds_count{{method="{ROUTE}"}}') == 5
    for phase in ("tokenize", "queue", "inference", "scoring", "selection", "total"):
        assert gained(f'{PHASE_SECONDS}_count{{phase="{phase}"}}') == 3, "no dry run"
    totals = sum(a.timing.total.ToNanoseconds() for a in answers) / 1e9
    assert gained(f'{PHASE_SECONDS}_sum{{phase="total"}}') == pytest.approx(totals, abs=1e-6)
    assert gained("modelsat_batch_size_sum") == gained("modelsat_score_cache_misses_total") == 2
    assert gained("modelsat_batch_rows_sum") > 2 * len(CATALOG)
    assert gained("modelsat_score_cache_hits_total") == 2
    assert gained('modelsat_decisions_total{kind="ranked"}') == 3
    chosen = {a.selected.removeprefix("candidates/") for a in answers}
    assert sum(gained(f'modelsat_selections_total{{candidate="{c}"}}') for c in chosen) == 3
    assert after["modelsat_candidates_revision"] == answers[0].revision
    identity = RevisionId.parse(answers[0].revision_token)
    assert after["modelsat_candidates_revision_hash"] == revision_hash(identity)
    assert after["modelsat_candidates_from_file"] == 0
    assert (after["modelsat_candidates"], after["modelsat_queue_capacity"]) == (len(CATALOG), 256)
    assert (after["modelsat_queue_size"], after["modelsat_store_up"]) == (0, 1)
    for population in ("selected", "eligible"):
        assert gained(f'modelsat_probability_count{{population="{population}"}}') == 3
    built = next(name for name in after if name.startswith("modelsat_build_info"))
    assert 'backend="onnxruntime' in built or 'backend="fused forward' in built


def test_every_exported_metric_is_in_the_table_and_the_other_way_round(observed: Observed) -> None:
    observed.route(text("Name a prime above 100."))
    with urllib.request.urlopen(observed.url) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    exported = {f.name + "_total" * (f.type == "counter"): f for f in families}
    assert {name: f.type for name, f in exported.items()} == {m.name: m.kind for m in METRICS}
    for metric in METRICS:
        labels = {frozenset(s.labels) - {"le"} for s in exported[metric.name].samples}
        assert labels <= {frozenset(metric.labels)}, metric.name


def test_series_of_candidates_come_and_go_with_them(observed: Observed) -> None:
    series = 'modelsat_selections_total{candidate="newcomer"}'
    request = rpb.RouteRequest(
        text="Hello?", policy=rpb.Policy(allowed_candidates=["candidates/newcomer"])
    )
    with Client(observed.server.address) as client:
        for round_ in range(2):
            client.create_candidate(replace(CATALOG[0], id="newcomer"))
            observed.route(request)
            assert observed.scrape()[series] == 1, f"from zero again in round {round_}"
            client.delete_candidate("newcomer")
            assert series not in observed.scrape()
    labels = {n for n in observed.scrape() if n.startswith("modelsat_selections_total")}
    known = [
        f'modelsat_selections_total{{candidate="{c}"}}' for c in [*(z.id for z in CATALOG), "other"]
    ]
    assert labels <= set(known)


def test_nothing_but_metrics_is_on_the_port(observed: Observed) -> None:
    for path in ("/", "/metrics/x", "/debug"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(observed.url.removesuffix("/metrics") + path)


# --- traces ----------------------------------------------------------------------------------


def test_spans_join_the_trace_of_the_caller(observed: Observed) -> None:
    answer = observed.route(text("Translate 'cat' to French."), SAMPLED)

    def ours(span: Span) -> bool:
        return span.trace_id.hex() == TRACE

    spans = {span.name: span for span in observed.collector.await_spans(ours, 6)}
    phases = ("tokenize", "queue", "inference", "scoring", "selection")
    assert set(spans) == {ROUTE, *phases}
    rpc = spans[ROUTE]
    assert rpc.parent_span_id.hex() == PARENT
    span_attributes = attributes(rpc)
    assert span_attributes["modelsat.decision_id"] == answer.decision_id
    assert span_attributes["modelsat.selected"] == answer.selected
    assert span_attributes["modelsat.revision_token"] == answer.revision_token
    assert (span_attributes["modelsat.revision"], span_attributes["modelsat.kind"]) == (
        answer.revision,
        "ranked",
    )
    assert span_attributes["rpc.grpc.status_code"] == 0
    edges = []
    for phase in phases:
        span = spans[phase]
        assert span.parent_span_id == rpc.span_id
        length = span.end_time_unix_nano - span.start_time_unix_nano
        expected = getattr(answer.timing, phase).ToNanoseconds()
        assert length == pytest.approx(expected, abs=1000)
        edges += [span.start_time_unix_nano, span.end_time_unix_nano]
    assert edges == sorted(edges)


def test_what_the_caller_does_not_sample_is_not_sent(observed: Observed) -> None:
    unsampled, alone = "a" * 32, "b" * 32
    observed.route(text("One."), ("traceparent", f"00-{unsampled}-{PARENT}-00"))
    observed.route(text("Two."), ("traceparent", "nonsense"))
    with pytest.raises(grpc.RpcError):
        observed.route(text(""), ("traceparent", f"00-{alone}-{PARENT}-01"))
    (failed,) = observed.collector.await_spans(lambda s: s.trace_id.hex() == alone, 1)
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert attributes(failed)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    roots = observed.collector.await_spans(lambda s: s.name == ROUTE and not s.parent_span_id, 1)
    assert roots, "without a caller's trace everything is sampled"
    assert unsampled not in {s.trace_id.hex() for s in observed.collector.spans()}


# --- log, audit, secrecy ---------------------------------------------------------------------


def test_every_line_of_a_request_carries_its_ids(observed: Observed) -> None:
    answer = observed.route(text("Sort [3, 1, 2]."), SAMPLED)
    assert re.fullmatch("[0-9a-f]{32}", answer.decision_id)
    lines = observed.log()
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    moment = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
    assert all(moment.fullmatch(line["time"]) for line in lines)
    (decided,) = [line for line in lines if line.get("decision_id") == answer.decision_id]
    assert (decided["level"], decided["trace_id"]) == ("DEBUG", TRACE)
    assert decided["selected"] == answer.selected


def test_an_audit_line_holds_the_whole_decision(observed: Observed) -> None:
    policy = rpb.Policy(cost_sensitivity=0.5, ranking_size=1)
    answer = observed.route(rpb.RouteRequest(text=f"What is {SECRET}?", policy=policy), SAMPLED)
    entry = observed.audited(answer.decision_id)
    assert (entry["selected"], entry["revision"]) == (answer.selected, answer.revision)
    assert entry["revision_token"] == answer.revision_token
    assert (entry["kind"], entry["trace_id"]) == ("ranked", TRACE)
    assert set(entry["probabilities"]) == set(entry["costs"]) == {c.name for c in CATALOG}
    best = answer.ranking[0]
    assert entry["probabilities"][best.candidate] == pytest.approx(best.probability, abs=1e-6)
    assert (entry["policy"]["objective"], entry["policy"]["value"]) == ("cost_sensitivity", 0.5)
    assert (entry["input_tokens"], entry["truncated"]) == (answer.input_tokens, False)
    assert "text" not in entry
    dry = observed.route(rpb.RouteRequest(text="Dry.", dry_run=True))
    last = observed.route(text("Not dry."))
    assert observed.audited(last.decision_id)
    assert dry.decision_id not in observed.audit.read_text()


def test_sighup_and_rotation_reopen_the_audit_file(observed: Observed) -> None:
    observed.audited(observed.route(text("Before.")).decision_id)
    old = observed.audit.rename(observed.audit.with_suffix(".1"))
    observed.server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 20
    while not observed.audit.exists():
        assert time.monotonic() < deadline, "SIGHUP alone makes the new file"
        time.sleep(0.02)
    size = old.stat().st_size
    observed.audited(observed.route(text("After.")).decision_id)
    assert old.stat().st_size == size
    assert observed.audit.stat().st_mode & 0o777 == 0o600


def test_no_text_of_an_instruction_leaves_the_server(observed: Observed) -> None:
    """Every output of it, at level DEBUG, after requests that succeed and fail in every way."""
    words = f"Explain {SECRET} to me."
    turns = [rpb.Message(role=rpb.ROLE_USER, text_parts=[words]), rpb.Message(text_parts=[words])]
    good = text(words)
    requests = [
        good,
        rpb.RouteRequest(text=words, dry_run=True),
        rpb.RouteRequest(conversation=rpb.Conversation(messages=turns[:1])),
        rpb.RouteRequest(conversation=rpb.Conversation(messages=turns)),
        text(words * 40_000),
        rpb.RouteRequest(text=words, policy=rpb.Policy(budget_usd=0)),
        rpb.RouteRequest(text=words, policy=rpb.Policy(cost_sensitivity=float("nan"))),
    ]
    errors = []
    for request in requests:
        try:
            observed.route(request, SAMPLED)
        except grpc.RpcError as error:
            errors.append(str(error))
    assert len(errors) == 4
    with grpc.insecure_channel(observed.server.address) as channel:
        raw = channel.unary_unary("/" + ROUTE)
        broken = good.SerializeToString().replace(b"Explain", b"\xff\xfexplai")
        with pytest.raises(grpc.RpcError, match="UTF-8"):
            raw(broken)
        with suppress(grpc.RpcError):  # most often it ends in the queue or in the forward
            raw(text(words * 100).SerializeToString(), timeout=0.005)
    last = observed.route(text("The end."), ("traceparent", f"00-{'e' * 32}-{PARENT}-01"))
    observed.audited(last.decision_id)
    observed.collector.await_spans(lambda s: s.trace_id.hex() == "e" * 32, 6)
    with urllib.request.urlopen(observed.url) as answer:
        outputs = [answer.read().decode(), observed.server.printed()]
    outputs += [*errors, observed.audit.read_text("utf-8"), str(observed.collector.received)]
    assert not any("quokka" in output for output in outputs)


def test_the_text_is_kept_where_it_is_asked_for_and_nothing_is_lost_at_the_end(
    tmp_path: Path,
) -> None:
    """A text log here, spans of the last second, and a collector that sees the server's end."""
    audit = tmp_path / "audit.jsonl"
    with collecting() as collector:
        flags = ["--audit-log", str(audit), "--audit-sample-rate", "1", "--audit-include-text"]
        flags += ["--otlp-endpoint", collector.address, "--log-level", "debug"]
        with serving(tmp_path / "s.sqlite", *flags) as server:
            with Client(server.address) as client:
                answer = client.route(f"What is {SECRET}?", Policy())
            assert server.terminate() == 0
        assert any(s.name == ROUTE for s in collector.spans())
    (line,) = audit.read_text("utf-8").splitlines()
    assert json.loads(line)["text"] == f"What is {SECRET}?"
    assert f"decision_id={answer.decision_id}" in server.printed()
    assert SECRET not in server.printed()
    assert os.environ.get("OTEL_SERVICE_NAME") or "modelsat" in str(collector.received)
