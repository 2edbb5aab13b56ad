"""Every metric that a server exports, in one table.

`python -m engine.serving.metric_table` prints it as docs/operations.md holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One exported metric. meaning: for people, with the unit."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric(
        "modelsat_info",
        "gauge",
        ("version", "backend", "kernel"),
        "always 1; what runs is in its labels",
    ),
    Metric(
        "modelsat_requests_total",
        "counter",
        ("method", "code"),
        "RPCs answered, by method and gRPC status code; methods that do not exist are `unknown`",
    ),
    Metric(
        "modelsat_request_seconds",
        "histogram",
        ("method",),
        "from a request read to its status; of a stream, its whole life",
    ),
    Metric(
        "modelsat_extproc_answers_total",
        "counter",
        ("code",),
        "HTTP requests that Envoy asked about: routed, passed (nothing to choose), or the error's"
        " `code`; their RPCs end with OK",
    ),
    Metric(
        "modelsat_phase_seconds",
        "histogram",
        ("phase",),
        "of a decision: prepare, queue, forward, score, choose, total",
    ),
    Metric("modelsat_forward_requests", "histogram", (), "requests joined into a forward pass"),
    Metric(
        "modelsat_forward_rows",
        "histogram",
        (),
        "rows of a forward pass: tokens and candidates, padding included",
    ),
    Metric("modelsat_queue_length", "gauge", (), "requests that wait for a forward pass"),
    Metric("modelsat_queue_limit", "gauge", (), "requests that may wait (`--max-waiting`)"),
    Metric(
        "modelsat_decisions_total",
        "counter",
        ("kind",),
        "decisions by how they came about: scored, session, abstained, fallback",
    ),
    Metric(
        "modelsat_selections_total",
        "counter",
        ("candidate",),
        "decisions by chosen candidate, of those registered now; `other` if it is gone",
    ),
    Metric("modelsat_revision", "gauge", (), "revision of the table that is served"),
    Metric("modelsat_candidates", "gauge", (), "candidates in it"),
    Metric(
        "modelsat_store_up",
        "gauge",
        (),
        "1 if the candidate store answers, 0 if PostgreSQL does not; an SQLite file is always 1",
    ),
    Metric(
        "modelsat_cache_hits_total", "counter", (), "decisions from probabilities already known"
    ),
    Metric("modelsat_cache_misses_total", "counter", (), "decisions that needed a forward pass"),
    Metric("modelsat_cache_bytes", "gauge", (), "held by known probabilities"),
    Metric(
        "modelsat_probability_mean",
        "gauge",
        ("of",),
        "of `selected` candidates and of `all` eligible ones, over about the last 1,000 decisions",
    ),
    Metric(
        "modelsat_probability_baseline",
        "gauge",
        ("of",),
        "the same over the first 1,000 since the start",
    ),
    Metric(
        "modelsat_unlikeness_mean",
        "gauge",
        (),
        "of instructions, over about the last 1,000 decisions",
    ),
    Metric(
        "modelsat_unlikeness_baseline", "gauge", (), "the same over the first 1,000 since the start"
    ),
    Metric(
        "modelsat_audit_lines_total",
        "counter",
        ("result",),
        "of the audit file: written, dropped (the queue was full), failed (the disk was)",
    ),
    Metric("process_cpu_seconds_total", "counter", (), "user and system time of the process"),
    Metric("process_resident_memory_bytes", "gauge", (), "memory in RAM"),
    Metric("process_virtual_memory_bytes", "gauge", (), "address space"),
    Metric("process_start_time_seconds", "gauge", (), "when it started, Unix time"),
    Metric("process_open_fds", "gauge", (), "open files and sockets"),
    Metric("process_max_fds", "gauge", (), "how many it may open"),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def markdown() -> str:
    """The table, a row for each metric."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    rows += [f"| {m.name} | {m.kind} | {', '.join(m.labels)} | {m.meaning} |" for m in METRICS]
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown())
