"""Every error the project raises on purpose, in one tree.

    ModelsatError
    |-- InvalidInputError      a caller's value is wrong           INVALID_ARGUMENT
    |-- NotFoundError          no such candidate                   NOT_FOUND
    |-- RevisionNotFoundError  no such revision is kept            NOT_FOUND
    |-- AlreadyExistsError     something is there already          ALREADY_EXISTS
    |-- EtagMismatchError      somebody else changed it first      ABORTED
    |-- ConflictError          other servers change the store all the time  ABORTED
    |-- NoEligibleCandidateError  hard constraints leave nobody    FAILED_PRECONDITION
    |-- OverloadedError        the queue is full                   RESOURCE_EXHAUSTED
    |   `-- WaitTooLongError   it is too long for the deadline     RESOURCE_EXHAUSTED
    |-- DeadlineError          time ran out before the forward     DEADLINE_EXCEEDED
    |-- UnavailableError       stopping, or a stage failed         UNAVAILABLE
    |-- UnauthenticatedError   no token, or none that is known     UNAUTHENTICATED
    |-- PermissionDeniedError  the token's role is another one     PERMISSION_DENIED
    |-- BundleError            a checkpoint or bundle is unusable  (at start)
    `-- StoreError             the candidate store is unusable     UNAVAILABLE, or at start

A message names the field, what was found, what was expected, and what to do. It never carries
the text of an instruction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


class RevisionNotFoundError(ModelsatError):
    """No revision of that number is kept; `name` is `revisions/{number}`."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"Revision {number} is not kept; `modelsat candidates revisions` shows which are."
        )
        self.name = f"revisions/{number}"


class AlreadyExistsError(ModelsatError):
    """Something of that name is there, and is not what was sent.

    name: `candidates/{id}` unless `resource_type` says otherwise. why: the rest of the sentence.
    """

    def __init__(
        self,
        name: str,
        why: str = "is registered already; update it, or choose another id.",
        resource_type: str = "modelsat.v1.Candidate",
    ) -> None:
        super().__init__(f"{name} {why}")
        self.name = name
        self.resource_type = resource_type


class EtagMismatchError(ModelsatError):
    """The candidate changed since the caller read it."""

    def __init__(self, name: str, found: str, expected: str) -> None:
        super().__init__(
            f"{name} has etag {expected}, the request was made for {found}; read it again."
        )
        self.name = name


class ConflictError(ModelsatError):
    """The store is at another revision than the change was planned for; nothing was changed."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(
            f"The store is at revision {found}, the change was made for {expected}: other servers"
            " change it all the time. Nothing was changed; send it again."
        )


class NoEligibleCandidateError(ModelsatError):
    """Nobody satisfies the hard constraints; `reasons` maps each candidate id to why."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        super().__init__(
            f"No candidate is eligible ({listed})."
            if reasons
            else "No candidate is registered; `modelsat candidates create FILE` registers one."
        )
        self.reasons = dict(reasons)


class OverloadedError(ModelsatError):
    """The queue is full; try again after `retry_after_s` seconds. what: those that wait."""

    def __init__(
        self, waiting: int, limit: int, retry_after_s: float, what: str = "requests"
    ) -> None:
        super().__init__(f"The queue is full: {waiting} {what} wait, the limit is {limit}.")
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


class UnauthenticatedError(ModelsatError):
    """The call carries no token that the server knows; the message never holds the given one."""


class PermissionDeniedError(ModelsatError):
    """The token is known and its role is not one that may call the method."""

    def __init__(self, name: str, role: str, method: str, needed: Collection[str]) -> None:
        super().__init__(
            f"The token {name!r} has the role {role!r}; {method} needs"
            f" {' or '.join(repr(n) for n in sorted(needed))}."
        )


class BundleError(ModelsatError):
    """A checkpoint or bundle cannot be used; says field, found and expected."""


class StoreError(ModelsatError):
    """The candidate store cannot be read or written; it is left as it is."""
