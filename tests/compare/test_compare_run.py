"""`modelsat compare run` against fake endpoints of known skill by region, on real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.aptitude.questions import read_file
from engine.cli.main import main
from engine.compare.costs import Budget
from engine.compare.report import wilson
from examples.fake_llm import FakeLLM, listening, write_questions
from tests.support.fake_chat import FakeChat, chat_endpoint
from tools.processes import ROOT, serving

TASKS = ("astronomy", "anatomy", "world_religions")
SKILL = {  # region -> candidate -> probability of a right answer
    "astronomy": {"ada": 0.95, "bob": 0.6, "cyd": 0.2},
    "anatomy": {"ada": 0.2, "bob": 0.6, "cyd": 0.95},
    "world_religions": {"ada": 0.2, "bob": 0.95, "cyd": 0.55},
}
NAMES = ("ada", "bob", "cyd")
MARKS = ("--map-column", "reference=answer", "--grader", "choice", "--dry-run", "--yes")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("log") / "log.jsonl", each=40, tasks=TASKS)


@contextmanager
def three(questions: Path, folder: Path, **more: Any) -> Iterator[dict[str, FakeLLM]]:
    """Three endpoints, and a file endpoints.toml that describes them."""
    known = read_file(questions)
    llms = {
        name: FakeLLM(known, {task: SKILL[task][name] for task in TASKS}, seed=i, **more)
        for i, name in enumerate(NAMES)
    }
    with ExitStack() as stack:
        urls = {name: stack.enter_context(listening(llm)) for name, llm in llms.items()}
        write_endpoints(folder, urls)
        yield llms


def write_endpoints(folder: Path, urls: Mapping[str, str], extra: str = "") -> None:
    tables = [
        f'[{name}]\nbase_url = "{url}"\ninput_usd_per_million = {i + 1}\n'
        f"output_usd_per_million = {10 * (i + 1)}\n{extra}"
        for i, (name, url) in enumerate(urls.items())
    ]
    (folder / "endpoints.toml").write_text("\n".join(tables))


def arguments(log: Path, folder: Path, *more: str) -> list[str]:
    command = ["compare", "run", "--log", str(log), "--candidates", ",".join(NAMES)]
    command += ["--endpoints", str(folder / "endpoints.toml"), "--out", str(folder / "c.json")]
    return [*command, *more]


def start(log: Path, folder: Path, *more: str, **environ: str) -> Any:
    command = [sys.executable, "-m", "engine.cli.main", *arguments(log, folder, *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environ}
    )


def run(log: Path, folder: Path, *more: str, status: int = 0, **environ: str) -> str:
    with start(log, folder, *more, **environ) as process:
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == status, printed + errors
    return str(printed + errors)


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "c.json").read_text())
    return found


def test_order_by_region_is_recovered_despite_errors_and_costs_are_counted(
    questions: Path, tmp_path: Path
) -> None:
    with three(questions, tmp_path, limit_every=90, fail_every=40, drop_every=70) as llms:
        printed = run(questions, tmp_path, *MARKS, "--sample", "90", "--regions", "3")
    found = report(tmp_path)
    assert found["compared"] == 90
    for region in found["regions"]:
        (task,) = [task for task in TASKS if task.split("_")[-1] in region["name"]]
        scores = {name: region["candidates"][name]["score"] for name in NAMES}
        expected = sorted(NAMES, key=lambda name: -SKILL[task][name])
        assert sorted(NAMES, key=lambda name: -scores[name]) == expected, (task, scores)
        assert region["name"] in " ".join(printed.split()) or "," in region["name"]
    for i, name in enumerate(NAMES):
        entry, llm = found["candidates"][name], llms[name]
        right = [llm.knows(q) for q in llm.questions if q.id in llm.asked]
        assert entry["score"] == pytest.approx(sum(right) / 90, abs=1e-6)
        assert entry["interval"] == pytest.approx(wilson(entry["score"], 90), abs=1e-5)
        assert (max(llm.asked.values()), entry["replies"]) == (1, 90)
        usd = (entry["input_tokens"] * (i + 1) + 90 * llm.answer_tokens * 10 * (i + 1)) / 1e6
        assert entry["cost_usd"] == pytest.approx(usd, abs=2e-6)
    total = sum(found["candidates"][name]["cost_usd"] for name in NAMES)
    assert found["spent_usd"] == pytest.approx(total, abs=1e-5)
    assert "Exercise" not in (tmp_path / "c.json").read_text()


def test_a_killed_run_resumes_and_asks_nothing_twice(questions: Path, tmp_path: Path) -> None:
    journal = tmp_path / "c.journal.jsonl"
    with three(questions, tmp_path, delay_s=0.05) as llms:
        with start(questions, tmp_path, *MARKS, "--sample", "60") as first:
            while not journal.exists() or journal.read_bytes().count(b"\n") < 70:
                assert first.poll() is None
                time.sleep(0.01)
            first.send_signal(signal.SIGKILL)
        time.sleep(0.3)  # requests in flight end, which the journal does not have
        kept = len(journal.read_bytes().splitlines()) - 1
        before = sum(llm.asked.total() for llm in llms.values())
        printed = run(questions, tmp_path, *MARKS, "--sample", "60")
        after = sum(llm.asked.total() for llm in llms.values())
        assert f"{kept} answers are already in the journal" in printed
        assert after - before == 180 - kept
        again = run(questions, tmp_path, *MARKS, "--sample", "60")
        graded_again = run(questions, tmp_path, *MARKS, "--sample", "60", "--grader", "contains")
        assert sum(llm.asked.total() for llm in llms.values()) == after
    assert "180 answers are already in the journal" in again
    assert "choice, contains" in graded_again
    assert report(tmp_path)["compared"] == 60


def test_a_budget_is_not_exceeded_and_the_rest_can_be_bought(
    questions: Path, tmp_path: Path
) -> None:
    spent = 0.0
    with three(questions, tmp_path) as llms:
        tables = (tmp_path / "endpoints.toml").read_text()
        (tmp_path / "endpoints.toml").write_text(f"[defaults]\nmax_tokens = 150\n{tables}")
        for budget in (0.1, 0.2):
            run(questions, tmp_path, *MARKS, "--sample", "60", "--budget-usd", str(budget))
            found = report(tmp_path)
            assert budget - 0.02 < found["spent_usd"] <= budget
            assert found["compared"] + found["over_budget"] == 60
            assert found["spent_usd"] > spent
            spent = found["spent_usd"]
        assert all(max(llm.asked.values()) == 1 for llm in llms.values())
        assert len({llm.asked.total() for llm in llms.values()}) == 1, "whole comparisons alone"
        (tmp_path / "endpoints.toml").write_text(tables.replace("input_usd_per_million = 2\n", ""))
        refused = run(questions, tmp_path, *MARKS, "--budget-usd", "1", status=1)
    assert "--budget-usd: needs the prices of bob" in refused


def test_budget_reserves_what_is_in_flight() -> None:
    budget = Budget(1.0)
    assert budget.reserve(0.6)
    assert not budget.reserve(0.6)
    budget.release(0.6)
    budget.spent_usd = 0.3
    assert budget.reserve(0.6)
    assert not budget.reserve(0.2)
    assert budget.reserve(0.0)


# --- judges ----------------------------------------------------------------------------------


@contextmanager
def writers(folder: Path, judge: Any) -> Iterator[FakeChat]:
    """Three candidates that say how good they are, and a judge."""
    said = dict(zip(NAMES, ("a masterpiece", "good", "poor"), strict=True))
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(chat_endpoint(lambda _, text=text: text)).url
            for name, text in said.items()
        }
        fake = stack.enter_context(chat_endpoint(judge))
        write_endpoints(folder, {**urls, "referee": fake.url})
        yield fake


def answers_in(body: dict[str, Any]) -> list[str]:
    prompt = body["messages"][0]["content"]
    return [
        part.split("]\n", 1)[1].split("\n[end")[0] for part in prompt.split("[begin answer")[1:]
    ]


def biased(body: dict[str, Any]) -> str:
    """Prefers the first answer, unless the second is a masterpiece."""
    first, second = answers_in(body)
    return "Verdict: B" if second == "a masterpiece" and first == "poor" else "Verdict: A"


DETAILS = {"completion_tokens_details": {"reasoning_tokens": 7}}
JUDGED = ("--judge", "referee", "--dry-run", "--yes", "--sample", "6", "--concurrency", "3")


def write_prompts(folder: Path, count: int = 6) -> Path:
    log = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Write about subject number {i}"}) for i in range(count)]
    log.write_text("\n".join(lines) + "\n")
    return log


def test_a_judge_biased_by_position_is_found_out(tmp_path: Path) -> None:
    log = write_prompts(tmp_path)
    with writers(tmp_path, biased) as judge:
        printed = run(log, tmp_path, *JUDGED, "--grader", "pairwise")
        run(log, tmp_path, *JUDGED, "--grader", "pairwise")
        assert judge.asked.total() == 36
    found = report(tmp_path)
    scores = {name: found["candidates"][name]["score"] for name in NAMES}
    assert scores == {"ada": 0.75, "bob": 0.5, "cyd": 0.25}
    assert found["disagreement"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["judges"]["referee"]["replies"] == 36
    assert found["spent_usd"] == pytest.approx(
        found["judges"]["referee"]["cost_usd"]
        + sum(found["candidates"][name]["cost_usd"] for name in NAMES)
    )
    assert "Mean disagreement of the verdicts: 0.667" in printed


def test_a_pointwise_judge_uses_the_rubric(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("Only masterpieces count.")

    def strict(body: dict[str, Any]) -> str:
        assert "Rubric: Only masterpieces count." in body["messages"][0]["content"]
        return f"Score: {10 if answers_in(body) == ['a masterpiece'] else 1}"

    more = ("--grader", "judge", "--rubric", str(tmp_path / "rubric.txt"))
    with writers(tmp_path, strict) as judge:
        run(write_prompts(tmp_path), tmp_path, *JUDGED, *more)
        assert judge.asked.total() == 18
    scores = {name: entry["score"] for name, entry in report(tmp_path)["candidates"].items()}
    assert scores == {"ada": 1.0, "bob": 0.1, "cyd": 0.1}


def test_a_request_that_one_model_refuses_is_left_out_and_a_broken_endpoint_ends_the_run(
    tmp_path: Path,
) -> None:
    log = write_prompts(tmp_path)

    def answer(body: dict[str, Any]) -> str | int:
        return 400 if body["messages"][0]["content"].endswith("3") else "fine"

    more = ("--grader", "regex", "--pattern", "fine", "--dry-run", "--yes")
    body = '{"temperature": null, "max_tokens": null, "max_completion_tokens": 9}'
    with ExitStack() as stack:
        good = stack.enter_context(chat_endpoint(answer, **DETAILS))
        write_endpoints(tmp_path, dict.fromkeys(NAMES, good.url), f"extra_body = '{body}'\n")
        run(log, tmp_path, *more)
        entry = report(tmp_path)["candidates"]["ada"]
        assert (entry["graded"], entry["not_graded"]) == (5, {"HTTP 400": 1})
        assert entry["reasoning_tokens"] == 35
        assert good.bodies[0].keys() == {"model", "messages", "max_completion_tokens"}
        bad = stack.enter_context(chat_endpoint(lambda _: 400))
        write_endpoints(
            tmp_path, {"ada": good.url, "bob": good.url, "cyd": bad.url}, "concurrency = 1\n"
        )
        printed = run(log, tmp_path, *more, status=1)
        assert "refused with HTTP 400" in printed
        assert len(bad.bodies) == 5


# --- what is checked before anything is asked ------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--candidates", "ada"), "names fewer than two"),
        (("--grader", "pairwise"), "--judge: is needed by --grader pairwise"),
        (("--program", "cat"), "--program: and --grader program need each other"),
        (("--grader", "regex", "--pattern", "("), "is not a regular expression"),
        (("--candidates", "ada,eve"), "eve: has no base_url"),
        (("--sample", "0"), "--sample: is 0; expected at least 1"),
        (("--out", "x.txt"), "expected a .json file"),
        (("--baseline", "eve"), "--baseline: is eve, which is no candidate"),
        (("--log", "none.jsonl"), "none.jsonl: matches no file"),
        ((), "choice finds no reference in 6 instructions; name the log's column"),
    ],
)
def test_wrong_flags_are_named_in_one_line(
    more: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_endpoints(tmp_path, dict.fromkeys(NAMES, "http://127.0.0.1:9/v1"))
    assert main(arguments(write_prompts(tmp_path), tmp_path, *MARKS, *more)) == 1
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ('[ada]\nbase_url = "http://far.example/v1"', "is http, which would send the key"),
        ('[ada]\nbase_url = "ftp://x"', "[ada].base_url: is not a base URL"),
        ("[ada]\nconcurrency = 0.5", "[ada].concurrency: is 0.5"),
        ("[ada]\nextra_body = '[1]'", "[ada].extra_body: is not an object"),
        ("[ada]\nurl = 1", "has the unknown field 'url'"),
        ("[ada.1]\nmodel = 'x'", 'quote names with dots: ["ada.1"]'),
        ("model = 'x'", "outside of a table"),
        ("[ada", "cannot be read"),
        ("[ada]\ninput_usd_per_million = 0.0000015", "looks like a price per token"),
    ],
)
def test_a_wrong_file_of_endpoints_is_named(
    tables: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "endpoints.toml").write_text(tables)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    more = (*MARKS, "--base-url", "http://127.0.0.1:9/v1")
    assert main(arguments(write_prompts(tmp_path), tmp_path, *more)) == 1
    printed = capsys.readouterr().err
    assert words in printed
    assert "sk-1" not in printed


def test_cost_is_shown_and_confirmation_needed_before_anything_is_asked(
    questions: Path, tmp_path: Path
) -> None:
    with three(questions, tmp_path) as llms:
        marks = [flag for flag in MARKS if flag != "--yes"]
        estimate = run(questions, tmp_path, *marks, "--sample", "20", "--estimate")
        refused = run(questions, tmp_path, *marks, "--sample", "20", status=1)
        assert not any(llm.requests for llm in llms.values())
    assert "Expected: 60 requests, about $0.4" in estimate
    assert "--yes: is needed without a terminal" in refused


def test_comparisons_are_recorded_once_with_prices_of_the_server(
    questions: Path, tmp_path: Path
) -> None:
    known, names = read_file(questions), ("command-r-v01", "deepseek-coder-v2")
    more = ("--map-column", "reference=answer", "--yes", "--sample", "20", "--candidates")
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path / "candidates.sqlite"))
        llms = [FakeLLM(known, {}, seed=i) for i in range(len(names))]
        urls = {
            f'"{n}"': stack.enter_context(listening(m)) for n, m in zip(names, llms, strict=True)
        }
        tables = [f'[{name}]\nbase_url = "{url}"' for name, url in urls.items()]
        (tmp_path / "endpoints.toml").write_text("\n".join(tables))
        to = ("--server", server.address, *more)
        printed = run(questions, tmp_path, "--grader", "choice", *to, ",".join(names))
        assert "recorded 40 outcomes" in printed
        found = report(tmp_path)
        assert found["recorded"] == {"outcomes": 40, "conflicts": 0}
        entry = found["candidates"]["command-r-v01"]
        usd = (entry["input_tokens"] * 0.5 + entry["output_tokens"] * 1.5) / 1e6
        assert entry["cost_usd"] == pytest.approx(usd, abs=1e-6)
        run(questions, tmp_path, "--grader", "choice", *to, ",".join(names))
        assert report(tmp_path)["recorded"] == {"outcomes": 0, "conflicts": 0}
        all_right = ("--grader", "regex", "--pattern", ".")
        printed = run(questions, tmp_path, *all_right, *to, ",".join(names))
        assert report(tmp_path)["recorded"]["conflicts"] > 10
        assert "instructions have other scores there already" in printed
        unknown = run(questions, tmp_path, "--grader", "choice", *to, "command-r-v01,eve", status=1)
        assert "--candidates: names eve, which" in unknown
        assert all(max(llm.asked.values()) == 1 for llm in llms)
