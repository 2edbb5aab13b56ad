"""Every error the project raises on purpose, in one tree.

    ModelsatError
    |-- InvalidInputError      a caller's value is wrong           INVALID_ARGUMENT
    |-- NotFoundError          no such candidate                   NOT_FOUND
    |-- AlreadyExistsError     that candidate is there already     ALREADY_EXISTS
    |-- EtagMismatchError      somebody else changed it first      ABORTED
    |-- NoEligibleCandidateError  hard constraints leave nobody    FAILED_PRECONDITION
    |-- OverloadedError        the queue is full                   RESOURCE_EXHAUSTED
    |   `-- WaitTooLongError   it is too long for the deadline     RESOURCE_EXHAUSTED
    |-- DeadlineError          time ran out before the forward     DEADLINE_EXCEEDED
    |-- UnavailableError       stopping, or a stage failed         UNAVAILABLE
    |-- BundleError            a checkpoint or bundle is unusable  (at start)
    `-- StoreError             the candidate store is unusable     UNAVAILABLE, or at start

A message names the field, what was found, what was expected, and what to do. It never carries
the text of an instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class ModelsatError(Exception):
    """Root of the tree."""


@dataclass(frozen=True)
class Violation:
    """One wrong value: `field` is the path in the request, `description` a whole sentence."""

    field: str
    description: str


class InvalidInputError(ModelsatError):
    """One or more values of a request are wrong; all of them are listed."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__(" ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class NotFoundError(ModelsatError):
    """No candidate of that name; `name` is `candidates/{id}`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not registered; `modelsat candidates list` shows who is.")
        self.name = name


class AlreadyExistsError(ModelsatError):
    """A candidate of that name is registered; `name` is `candidates/{id}`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is registered already; update it, or choose another id.")
        self.name = name


class EtagMismatchError(ModelsatError):
    """The candidate changed since the caller read it."""

    def __init__(self, name: str, found: str, expected: str) -> None:
        super().__init__(
            f"{name} has etag {expected}, the request was made for {found}; read it again."
        )
        self.name = name


class NoEligibleCandidateError(ModelsatError):
    """Nobody satisfies the hard constraints; `reasons` maps each candidate id to why."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        super().__init__(
            f"No candidate is eligible ({listed})."
            if reasons
            else "No candidate is registered; `modelsat candidates add FILE` registers one."
        )
        self.reasons = dict(reasons)


class OverloadedError(ModelsatError):
    """The queue is full; try again after `retry_after_s` seconds."""

    def __init__(self, waiting: int, limit: int, retry_after_s: float) -> None:
        super().__init__(f"The queue is full: {waiting} requests wait, the limit is {limit}.")
        self.retry_after_s = retry_after_s


class WaitTooLongError(OverloadedError):
    """The queue is too long for the caller's deadline; it has room in `retry_after_s` seconds."""

    def __init__(self, waiting: int, wait_s: float, left_s: float, retry_after_s: float) -> None:
        ModelsatError.__init__(
            self,
            f"{waiting} requests wait, about {wait_s:.2f} s; the deadline leaves {left_s:.2f} s."
            " Try again later or another server.",
        )
        self.retry_after_s = retry_after_s


class DeadlineError(ModelsatError):
    """The caller's deadline passed, or would pass, before the instruction was scored."""


class UnavailableError(ModelsatError):
    """The server is stopping, or the stage that had the request failed."""


class BundleError(ModelsatError):
    """A checkpoint or bundle cannot be used; says field, found and expected."""


class StoreError(ModelsatError):
    """The candidate store cannot be read or written; it is left as it is."""
