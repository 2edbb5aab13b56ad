"""Run comparisons: ask every candidate each instruction, and grade the replies.

Instructions are taken in the order of the draw and finished one by one, so that a run that a budget
or an error stops leaves whole comparisons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from engine.api.errors import ModelsatError
from engine.aptitude.journal import Journal, Reply
from engine.compare.asking import JournaledEndpoint, count_earlier, finish_all
from engine.compare.costs import Budget, JudgePlan, prompt_for, worst_reply_usd, worst_verdicts_usd
from engine.compare.endpoints import PricedEndpoint
from engine.compare.graders.grading import Comparison, Grader, compare_replies, gradable
from engine.compare.graders.judges import PairwiseJudge, PointwiseJudge
from engine.compare.sampling.instructions import LoggedInstruction

JOURNAL = {
    "kind": "comparison"
}  # identifies the file; its keys say what was asked, and which endpoint


@dataclass(frozen=True)
class ComparePlan:
    """What a run does. graders: those that need no LLM, in addition to `judges`."""

    instructions: Sequence[LoggedInstruction]
    candidates: Sequence[PricedEndpoint]
    graders: Sequence[Grader] = ()
    judges: Sequence[JudgePlan] = ()
    budget_usd: float | None = None

    @property
    def grader_names(self) -> list[str]:
        """Names of all graders, as they are recorded."""
        return [
            *(g.name for g in self.graders),
            *(f"{j.kind} {j.endpoint.name}" for j in self.judges),
        ]


@dataclass(frozen=True)
class CompareRun:
    """The result of a run.

    comparisons: in the order of the plan. over_budget: instructions that the budget left out.
    spent_usd: by this run and by those before it with the same journal. judge_replies: judge -> its
    verdicts.
    """

    comparisons: Sequence[Comparison]
    over_budget: int = 0
    spent_usd: float = 0.0
    judge_replies: Mapping[str, Sequence[Reply]] = field(default_factory=dict)


async def run_comparisons(
    plan: ComparePlan, journal: Journal, on_finished: Callable[[Comparison], None]
) -> CompareRun:
    """Compare the candidates on every instruction, several at a time.

    Args:
        plan: what to ask, of which endpoints, and how to grade.
        journal: has the replies of earlier runs, and gets those of this one.
        on_finished: called with each comparison when it is graded.

    Raises:
        ExaminationError: the first reason why an endpoint cannot be asked. Calls in flight are
            waited for; the replies so far are in the journal.
    """
    runner = _Runner(plan, journal, on_finished)
    async with AsyncExitStack() as stack:
        for endpoint in runner.endpoints:
            await endpoint.open(stack)
        await runner.run()
    return CompareRun(
        [runner.finished[number] for number in sorted(runner.finished)],
        runner.over_budget,
        runner.budget.spent_usd,
        {judge.priced.name: list(judge.replies.values()) for judge in runner.judges},
    )


class _Runner:
    """The state of one run."""

    def __init__(
        self, plan: ComparePlan, journal: Journal, on_finished: Callable[[Comparison], None]
    ) -> None:
        self._plan = plan
        self._on_finished = on_finished
        self.budget = Budget(plan.budget_usd)
        self._candidates = [JournaledEndpoint(c, journal, self.budget) for c in plan.candidates]
        by_judge = {j.endpoint.name: j.endpoint for j in plan.judges}
        asked = {n: JournaledEndpoint(e, journal, self.budget) for n, e in by_judge.items()}
        self.judges = list(asked.values())
        self._judging = [
            (_judge(j, asked[j.endpoint.name]), asked[j.endpoint.name]) for j in plan.judges
        ]
        count_earlier(self.endpoints, journal, self.budget)
        self.finished: dict[int, Comparison] = {}
        self.over_budget = 0
        self._failures: list[ModelsatError] = []

    @property
    def endpoints(self) -> list[JournaledEndpoint]:
        return [*self._candidates, *self.judges]

    async def run(self) -> None:
        """Compare on all instructions; raises the first failure."""
        width = max(endpoint.priced.endpoint.concurrency for endpoint in self.endpoints)
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            for number, instruction in enumerate(self._plan.instructions):
                while len(running) >= width:
                    running = await _unfinished(running)
                cost = self._worst_usd(instruction)
                # What is in flight costs less than it may; so wait for it before giving up.
                while not (reserved := self.budget.reserve(cost)) and running:
                    running = await _unfinished(running)
                if self._failures:
                    if reserved:
                        self.budget.release(cost)
                    break
                if not reserved:
                    self.over_budget += 1
                    continue
                running.add(group.create_task(self._compare(number, instruction, cost)))
        if self._failures:
            raise self._failures[0]

    async def _compare(self, number: int, instruction: LoggedInstruction, reserved: float) -> None:
        try:
            prompt = prompt_for(instruction)
            replies = await finish_all(candidate.ask(prompt) for candidate in self._candidates)
            names = [candidate.priced.name for candidate in self._candidates]
            graders = [*self._plan.graders, *(judge for judge, _ in self._judging)]
            by_candidate = dict(zip(names, replies, strict=True))
            self.finished[number] = await compare_replies(instruction, by_candidate, graders)
            self._on_finished(self.finished[number])
        except ModelsatError as error:
            self._failures.append(error)
            for endpoint in self.endpoints:
                endpoint.stop()
        except asyncio.CancelledError:
            if not any(endpoint.stopped for endpoint in self.endpoints):
                raise
        finally:
            self.budget.release(reserved)

    def _worst_usd(self, instruction: LoggedInstruction) -> float:
        """Return what the requests that the journal does not answer cost at most."""
        prompt = prompt_for(instruction)
        unasked = [c.priced for c in self._candidates if not c.known(prompt)]
        if unasked:
            replies = sum(worst_reply_usd(candidate, prompt.tokens) for candidate in unasked)
            names = [candidate.name for candidate in self._plan.candidates]
            return replies + worst_verdicts_usd(instruction, names, self._plan.judges)
        texts, _ = gradable({c.priced.name: c.answer(prompt) for c in self._candidates})
        return sum(
            worst_reply_usd(endpoint.priced, verdict.tokens)
            for judge, endpoint in self._judging
            for verdict in judge.prompts(instruction, texts).values()
            if not endpoint.known(verdict)
        )


async def _unfinished(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until one of the tasks is finished; returns the others."""
    _, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    return others


def _judge(plan: JudgePlan, endpoint: JournaledEndpoint) -> PointwiseJudge | PairwiseJudge:
    name = plan.endpoint.name
    if plan.kind == "pairwise":
        return PairwiseJudge(name, endpoint.ask_all, plan.rubric, plan.baseline)
    return PointwiseJudge(name, endpoint.ask_all, plan.rubric)
