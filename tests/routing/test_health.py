"""A candidate that fails in a row is set aside for a time, and only by those who saw it."""

from __future__ import annotations

import pytest

from engine.routing.health import LATENCY_AGE_S, CandidateHealth, is_upstream_failure


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def failing(count: int, error: str = "HTTP 529") -> tuple[CandidateHealth, Clock]:
    clock = Clock()
    health = CandidateHealth(3, 30, clock)
    for _ in range(count):
        health.report("a", error)
    return health, clock


def test_three_failures_in_a_row_set_a_candidate_aside() -> None:
    health, clock = failing(2)
    health.report("a")  # answered
    health.report("a", "HTTP 500")
    health.report("a", "no answer")
    assert health.set_aside("") == {}
    health.report("a", "HTTP 503")
    reason = "set aside for 30 s more: 3 failures in a row, the last with HTTP 503"
    assert health.set_aside("anyone") == {"a": reason}
    clock.now += 30
    assert health.set_aside("anyone") == {}


def test_each_pause_is_longer_until_it_answers() -> None:
    health, clock = failing(3)
    passed_s = 30
    for pause_s in (60, 120, 240, 480, 600, 600):
        clock.now += passed_s
        health.report("a", "HTTP 500")
        assert f"for {pause_s} s more" in health.set_aside("")["a"]
        passed_s = pause_s
    clock.now += 600
    health.report("a")
    health.report("a", "HTTP 500")
    assert health.set_aside("") == {}


def test_old_failures_are_forgotten() -> None:
    health, clock = failing(2)
    clock.now += 301
    health.report("a", "HTTP 500")
    assert health.set_aside("") == {}
    health, clock = failing(3)
    clock.now += 331
    health.report("a", "HTTP 500")
    assert health.set_aside("") == {}


def test_late_answers_and_failures_during_a_pause_change_nothing() -> None:
    health, _ = failing(3)
    health.report("a")
    health.report("a", "HTTP 500")
    assert "3 failures" in health.set_aside("")["a"]


def test_a_principals_reports_count_for_itself_alone() -> None:
    health = CandidateHealth(1, 30, Clock())
    health.report("a", "HTTP 500", "tenant-1")
    assert health.set_aside("tenant-1")
    assert health.set_aside("tenant-2") == health.set_aside("") == {}
    assert health.samples() == {("a",): 1.0}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("HTTP 529", True),
        ("529 overloaded_error", True),
        ("HTTP 429", True),
        ("HTTP 401: key of project 400", True),
        ("timed out after 4000 ms", True),
        ("timed out after 400 s", True),
        ("422 tokens, then no more", True),
        ("timeout: 413.5 seconds", True),
        ("APIConnectionError", True),
        ("HTTP 400", False),
        ("HTTP 422", False),
        ("BadRequestError 413: too large", False),
    ],
)
def test_errors_of_the_request_are_not_the_candidates(error: str, expected: bool) -> None:
    assert is_upstream_failure(error) is expected
    health, _ = failing(3, error)
    assert bool(health.set_aside("")) is expected


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("Error code: 401 - {'message': 'Incorrect API key provided: sk-123'}", "HTTP 401"),
        ("Incorrect API key provided: sk-123", "Incorrect API key provided"),
        ('cannot answer "my secret"', "cannot answer"),
        ("timed out\n2026-01-01T00:00:00Z INFO forged", "timed out"),
        ("\x1b[31mred", "an error"),
        ("délai dépassé", "délai dépassé"),
        ("x" * 300, "x" * 80),
    ],
)
def test_what_is_shown_of_an_error_holds_no_prompt_key_or_line_break(
    error: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    health, _ = failing(3, error)
    assert health.set_aside("")["a"].endswith(f"the last with {shown}")
    assert caplog.messages[-1].endswith(f"the last with {shown}")


def test_zero_failures_turn_it_off() -> None:
    health = CandidateHealth(0, 30, Clock())
    for _ in range(10):
        health.report("a", "HTTP 500")
    assert health.set_aside("") == {}
    assert health.failures["a"] == 10


def test_latency_is_a_moving_mean_of_enough_calls() -> None:
    health = CandidateHealth(3, 30, Clock())
    for i in range(4):
        health.report("a", latency_s=1.0)
        assert health.latency_ms("a", "") is None, i
    health.report("a", latency_s=2.0)
    assert health.latency_ms("a", "") == pytest.approx(1200)
    for _ in range(60):
        health.report("a", latency_s=4.0)
    assert health.latency_ms("a", "tenant") == pytest.approx(4000, abs=20)


def test_a_latency_is_forgotten_so_that_a_limit_cannot_exclude_a_candidate_for_good() -> None:
    clock = Clock()
    health = CandidateHealth(3, 30, clock)
    for _ in range(9):
        health.report("a", latency_s=60.0)
    clock.now += LATENCY_AGE_S
    assert health.latency_ms("a", "") == 60_000
    clock.now += 1
    assert health.latency_ms("a", "") is None
    for _ in range(5):
        health.report("a", latency_s=2.0)
    assert health.latency_ms("a", "") == pytest.approx(2000)
