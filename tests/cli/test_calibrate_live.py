"""`modelsat calibrate` by a server: what it predicts is what the server then does."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engine.api.policy import Policy
from engine.cli.calibrate.live import LiveMix, LiveTable
from engine.cli.calibrate.report import guarded_mix
from engine.cli.calibrate.solve import ExpectedPoint, TrafficTarget
from engine.cli.main import main as modelsat
from engine.client import Client, RouteDecision
from modelsat import Usage
from tests.support.mixed_prompts import mixed_prompts
from tools.processes import BUNDLE, Server, serving

PROMPTS = mixed_prompts(160)
ASKED = ("gpt-4.1", "gpt-4.1-mini", "gpt-5-high", "gemini-2.5-flash", "claude-sonnet-4", "o3")
SHARE = 0.02  # of the requests, by which the live mix may differ from the predicted one
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("live")
    catalog = json.loads((BUNDLE / "zoo.json").read_text("utf-8"))["candidates"]
    own = [c for c in catalog if c.get("id") in ASKED]
    assert len(own) == len(ASKED)
    (folder / "six.json").write_text(json.dumps(own))
    flags = ("--catalog", str(folder / "six.json"), "--set-aside-s", "3")
    with serving(folder / "c.sqlite", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("traffic") / "prompts.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    return file


def calibrated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert modelsat(["calibrate", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def live(server: Server, usd: float) -> tuple[dict[str, float], float]:
    """Route all prompts, and return the shares and the mean cost."""
    with Client(server.address) as client:
        decisions = client.route_many(PROMPTS, Policy("willingness_to_pay_usd", usd))
    assert all(isinstance(d, RouteDecision) for d in decisions)
    first = [d.ranking[0] for d in decisions if isinstance(d, RouteDecision)]
    shares = {name: n / len(PROMPTS) for name, n in Counter(r.candidate for r in first).items()}
    return shares, float(np.mean([r.expected_cost_usd for r in first]))


def assert_alike(predicted: dict[str, float], shares: dict[str, float]) -> None:
    for name in {*predicted, *shares}:
        assert predicted.get(name, 0) == pytest.approx(shares.get(name, 0), abs=SHARE), name


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_a_share_of_the_cost_is_kept_by_the_traffic_that_it_was_solved_from(
    server: Server, traffic: Path, capsys: pytest.CaptureFixture[str], ratio: float
) -> None:
    words = ("--traffic", str(traffic), "--server", server.address)
    found = calibrated(capsys, *words, "--max-cost-ratio", str(ratio))
    point = found["recommended"]
    shares, cost = live(server, point["willingness_to_pay_usd"] or math.inf)
    assert_alike(point["selection_share"], shares)
    assert cost <= ratio * found["best_single"]["cost_usd"] * (1 + 1e-6)
    assert cost >= 0.6 * ratio * found["best_single"]["cost_usd"], "the budget is used"


def test_a_share_of_the_requests_goes_to_the_strong_candidate(
    server: Server, traffic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--traffic", str(traffic), "--server", server.address)
    found = calibrated(capsys, *words, "--strong-share", "0.3")
    shares, _ = live(server, found["recommended"]["willingness_to_pay_usd"])
    strong = found["best_single"]["candidate"]
    assert 0.3 <= shares[strong] <= 0.3 + SHARE


def test_without_a_target_it_proposes_a_start_within_the_recommended_range(
    server: Server, traffic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = calibrated(capsys, "--traffic", str(traffic), "--server", server.address)
    point = found["recommended"]
    assert 0.001 <= point["willingness_to_pay_usd"] <= 1
    assert point["cost_ratio"] < 0.7
    assert point["probability_ratio"] > 0.9


@pytest.mark.parametrize("share", ["1.5", "150%", "0", "-1", "nan", "a third", "5%0"])
def test_a_share_that_is_none_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        modelsat(["calibrate", "--traffic", "none.txt", "--strong-share", share])
    assert share in capsys.readouterr().err


def test_requests_of_one_api_go_to_the_candidates_that_answer_in_it(
    server: Server, traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kind: a mix was predicted with candidates that the gateway may not choose."""
    words = ["--traffic", str(traffic), "--server", server.address, "--sample", "40"]
    with Client(server.address) as client:
        before = client.list_candidates()
        api = {c.id: "anthropic.messages" if "claude" in c.id else "openai.chat" for c in before}
        client.replace_candidates([replace(c, features=(api[c.id],)) for c in before])
        try:
            assert modelsat(["calibrate", *words]) == 0
            assert "--api names it" in capsys.readouterr().err
            log = tmp_path / "log.jsonl"
            body = {"messages": [{"role": "user", "content": "Why?"}]}
            log.write_text(json.dumps({"path": "/v1/messages", "body": body}))
            modelsat(["calibrate", "--traffic", str(log), "--server", server.address])
            assert "--api" not in capsys.readouterr().err
            found = calibrated(capsys, *words, "--api", "anthropic.messages")
        finally:
            client.replace_candidates(before)
    assert found["recommended"]["selection_share"] == {"claude-sonnet-4": 1.0}


@pytest.mark.parametrize("served", [0.8, 1.0, 1.1, 3.0])
def test_a_guard_that_spends_more_leaves_little_of_the_allowed_cost(served: float) -> None:
    """Kind: 11 points of the cost that was allowed were left. served: by solved cost."""

    class Table:
        def mix(self, usd: float) -> LiveMix:
            return LiveMix(usd, {"a": 1.0}, 0.5, served * usd)

    point, best = (ExpectedPoint(usd, 0.5, usd, np.ones(1)) for usd in (0.6, 1.0))
    table = cast(LiveTable, Table())
    mix = guarded_mix(table, point, TrafficTarget(max_cost_ratio=0.6), best, "a")
    assert 0.98 * min(served, 1.0) * 0.6 <= mix.cost <= 0.6 * (1 + 1e-6)


def test_a_candidate_that_is_set_aside_is_named(
    server: Server, traffic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kind: a price was recommended, without a word, as if the best candidate did not exist."""
    alone = Policy(allowed_candidates=("o3",))

    def report(client: Client, error: str) -> None:
        decision = client.route("Why?", alone)
        usage = Usage(error=error)
        client.record_outcome(decision.decision_id, "o3", float(not error), usage=usage)

    with Client(server.address) as client:
        for _ in range(3):
            report(client, "HTTP 529")
        modelsat(["calibrate", "--traffic", str(traffic), "--server", server.address])
        assert "not among the choices: o3" in capsys.readouterr().err
        ends = time.monotonic() + PATIENCE_S
        while client.set_aside():
            assert time.monotonic() < ends
            time.sleep(0.1)
        report(client, "")


def test_outcomes_of_one_candidate_a_request_are_exported_calibrated_and_come_true(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Serve, record the outcome of the selected candidate alone, export, calibrate, serve."""
    random = np.random.default_rng(3)
    with Client(server.address) as client:
        for i, text in enumerate(PROMPTS):
            usd = (math.inf, 0.1, 0.003)[i % 3]
            decision = client.route(text, Policy("willingness_to_pay_usd", usd))
            right = random.random() < 0.9 * decision.ranking[0].probability
            client.record_outcome(decision.decision_id, decision.selected, right, text=text)
        until = time.monotonic() + PATIENCE_S
        while client.adaptation().instructions < len(PROMPTS) and time.monotonic() < until:
            time.sleep(0.2)
    store, folder = str(server.log.with_name("outcomes.sqlite")), tmp_path / "own"
    export = ["outcomes", "export", "--outcomes-db", store, "--out", str(folder)]
    assert modelsat([*export, "--server", server.address]) == 0
    test = json.loads((folder / "aptitude.json").read_text("utf-8"))
    assert set(test["scores"]) <= set(ASKED)
    words = ("--data", str(folder), "--server", server.address)
    found = calibrated(capsys, *words, "--max-cost-ratio", "2")  # of the best with outcomes
    point = found["recommended"]
    assert point["standard_error"] > 0
    assert point["effective_outcomes"] >= 30
    assert len(found["live_mix"]) > 1
    assert modelsat(["calibrate", *words, "--max-cost-ratio", "2"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[:15])) <= 80
    assert_alike(found["live_mix"], live(server, point["willingness_to_pay_usd"])[0])


@pytest.mark.parametrize("active", [False, True])
def test_a_replay_knows_the_candidates_of_the_server_and_says_what_it_leaves_out(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    active: bool,
) -> None:
    with Client(server.address) as client:
        learned = replace(client.adaptation(), active=active)
    monkeypatch.setattr(Client, "adaptation", lambda _: learned)
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(json.dumps({"text": text}) for text in PROMPTS[:12]), "utf-8")
    words = ["replay", str(log), "--out", str(tmp_path / "out"), "--no-plots", "--workers", "1"]
    policy = "own=willingness_to_pay_usd=0.05"
    assert modelsat([*words, "--policy", policy, "--server", server.address]) == 0
    printed = capsys.readouterr()
    assert ("corrects probabilities by outcomes, and a replay does not" in printed.err) == active
    assert max(map(len, printed.out.splitlines()[:-1])) <= 80, "the last line has a path"
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["candidates"] == sorted(ASKED)
    assert sum(report["policies"]["own"]["selection_share"].values()) == 12


def test_data_without_registered_candidates_and_unknown_names_are_refused(
    server: Server, traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--traffic", str(traffic), "--server", server.address]
    assert modelsat([*words, "--strong", "stranger", "--strong-share", "0.5"]) == 1
    assert "stranger, which is not eligible" in capsys.readouterr().err
    assert modelsat(["calibrate", "--data", str(tmp_path)]) == 1
    assert "needs --min-accuracy-ratio" in capsys.readouterr().err
