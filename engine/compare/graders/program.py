"""Grade by a program of the user's: JSON on its standard input, a score on its standard output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.compare.graders.grading import Grades
from engine.compare.sampling.instructions import LoggedInstruction

MAX_OUTPUT_CHARS = 100_000
CONCURRENT = max(1, os.cpu_count() or 1)


class ProgramError(Exception):
    """The program gave no score; the text says why."""


@dataclass(frozen=True)
class ProgramGrader:
    """Runs `command` once for each reply.

    Its standard input is a JSON object: instruction, messages, references, category, candidate and
    reply. Its standard output ends with a line that is a score in [0, 1], or a JSON object that has
    one as "score". hidden: variables of the environment that it does not get, such as API keys.
    """

    command: str
    timeout_s: float = 60.0
    hidden: frozenset[str] = frozenset()
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT))

    @property
    def name(self) -> str:
        """Name of the grader, as it is recorded."""
        return f"program {os.path.basename(shlex.split(self.command)[0])}"  # noqa: PTH119

    async def grade(self, instruction: LoggedInstruction, replies: Mapping[str, str]) -> Grades:
        """See Grader."""

        async def scored(candidate: str, reply: str) -> float | str:
            try:
                async with self.slots:
                    return read_output(await self._run(_input(instruction, candidate, reply)))
            except ProgramError as error:
                return f"{self.name} {error}"

        results = await asyncio.gather(*(scored(c, text) for c, text in replies.items()))
        by_candidate = dict(zip(replies, results, strict=True))
        return Grades(
            {c: r for c, r in by_candidate.items() if isinstance(r, float)},
            {c: r for c, r in by_candidate.items() if isinstance(r, str)},
        )

    async def _run(self, document: bytes) -> str:
        environ = {name: v for name, v in os.environ.items() if name not in self.hidden}
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *shlex.split(self.command),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=environ,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ProgramError(f"cannot be started ({error})") from error
        try:
            async with asyncio.timeout(self.timeout_s):
                output, errors = await process.communicate(document)
        except TimeoutError:
            raise ProgramError(f"took longer than {self.timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its children too
                await process.wait()
        if process.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2][:200]
            last = "".join(c if c.isprintable() else "?" for c in last)
            raise ProgramError(f"ended with status {process.returncode} ({last})")
        return output.decode(errors="replace")


def _input(instruction: LoggedInstruction, candidate: str, reply: str) -> bytes:
    document: dict[str, Any] = {
        "instruction": instruction.text,
        "messages": list(instruction.messages),
        "references": list(instruction.references),
        "category": instruction.category,
        "candidate": candidate,
        "reply": reply,
    }
    return json.dumps(document).encode()


def read_output(output: str) -> float:
    """Read the score in the last line of a program's output; raises ProgramError."""
    last = output[-MAX_OUTPUT_CHARS:].strip().rpartition("\n")[2].strip()
    for text in (last, output.strip()):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        value = value.get("score") if isinstance(value, dict) else value
        if isinstance(value, bool | int | float) and 0 <= value <= 1:
            return float(value)
    raise ProgramError("did not end with a score in [0, 1]")
