"""Grade the replies to the free-text questions of an aptitude test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.grading import is_complete
from engine.aptitude.journal import Reply
from engine.aptitude.marking.reasoning import without_reasoning
from engine.aptitude.questions import Question
from engine.compare.graders.answers import AnswerOptions, answer_check
from engine.compare.graders.grading import AnswerGrader, Grader
from engine.compare.graders.program import ProgramGrader
from engine.compare.sampling.instructions import LoggedInstruction

PROGRAM = "program"


class FreeTextGraders:
    """The graders of the free-text questions, each by the name that a question gives.

    Args:
        options: settings of the graders that compare with references.
        program: of the questions whose grader is "program".
    """

    def __init__(self, options: AnswerOptions, program: ProgramGrader | None = None) -> None:
        self._options = options
        self._program = program
        self._graders: dict[str, Grader] = {}

    def require_gradable(self, questions: Sequence[Question]) -> None:
        """Check before anything is asked that each free-text question can be graded.

        Raises:
            InvalidInputError: the first question that cannot, by its ID.
        """
        for question in questions:
            if question.options:
                continue
            grader = self._grader(question.grader)
            if isinstance(grader, AnswerGrader) and not grader.can_grade(_instruction(question)):
                problem = f"has no reference that the grader {question.grader!r} can use."
                raise InvalidInputError(Violation(question.id, problem))

    def scores(
        self, questions: Sequence[Question], replies: Mapping[str, Reply]
    ) -> dict[str, float]:
        """Return question key -> score in [0, 1] of each complete reply to a free-text question.

        Raises:
            InvalidInputError: a program gave no score.
        """

        async def grade_all() -> list[float]:
            return await asyncio.gather(*(self._score(q, replies[q.key]) for q in complete))

        complete = [q for q in questions if not q.options and is_complete(replies[q.key])]
        return dict(zip([q.key for q in complete], asyncio.run(grade_all()), strict=True))

    async def _score(self, question: Question, reply: Reply) -> float:
        text = (without_reasoning(reply.text) or "").strip()
        grades = await self._grader(question.grader).grade(_instruction(question), {"": text})
        if "" in grades.problems:
            problem = f"was not graded: {grades.problems['']}; the replies are in the journal."
            raise InvalidInputError(Violation(question.id, problem))
        return grades.scores[""]

    def _grader(self, name: str) -> Grader:
        if name not in self._graders:
            if name != PROGRAM:
                self._graders[name] = AnswerGrader(name, answer_check(name, self._options))
            elif self._program is None:
                problem = "is needed by questions with the grader 'program'."
                raise InvalidInputError(Violation("--program", problem))
            else:
                self._graders[name] = self._program
        return self._graders[name]


def _instruction(question: Question) -> LoggedInstruction:
    messages = ({"role": "user", "content": question.text},)
    return LoggedInstruction(question.text, messages, question.references, question.task)
