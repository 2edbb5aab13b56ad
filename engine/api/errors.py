"""All errors that the project raises on purpose, with the gRPC status of each.

    ModelsatError
    |-- InvalidInputError         a value of the request is invalid          INVALID_ARGUMENT
    |-- NotFoundError             no such candidate                          NOT_FOUND
    |-- RevisionNotFoundError     no such revision in the store              NOT_FOUND
    |-- AdaptationNotFoundError   no such adaptation in the store            NOT_FOUND
    |-- DecisionNotFoundError     no such decision of this caller            NOT_FOUND
    |-- RevisionLostError         a demanded revision is not in the store    FAILED_PRECONDITION
    |-- AlreadyExistsError        the name is taken                          ALREADY_EXISTS
    |-- EtagMismatchError         the candidate changed since it was read    ABORTED
    |-- ConflictError             other servers keep changing the store      ABORTED
    |-- NoEligibleCandidateError  no candidate meets the hard constraints    FAILED_PRECONDITION
    |-- OverloadedError           the queue is full                          RESOURCE_EXHAUSTED
    |   `-- WaitTooLongError      the queue is too long for the deadline     RESOURCE_EXHAUSTED
    |-- DeadlineError             the deadline passed before scoring         DEADLINE_EXCEEDED
    |-- UnavailableError          the server is stopping, or a stage failed  UNAVAILABLE
    |-- UnauthenticatedError      no token, or an unknown one                UNAUTHENTICATED
    |-- PermissionDeniedError     the token's role may not call the method   PERMISSION_DENIED
    |-- BundleError               a checkpoint or bundle is unusable         (at start)
    `-- StoreError                a store cannot be read or written          UNAVAILABLE

A message names the field, what was found, what was expected, and what to do. It never contains the
text of an instruction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

LISTED_CANDIDATES = 3  # of one reason, by name; more are only counted


class ModelsatError(Exception):
    """Base class of all errors."""


@dataclass(frozen=True)
class Violation:
    """One invalid value.

    field: its path in the request. description: the rest of a sentence that begins with the field.
    """

    field: str
    description: str


class InvalidInputError(ModelsatError):
    """One or more values of a request are invalid; `violations` lists all of them."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__(" ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class NotFoundError(ModelsatError):
    """No candidate has that name; `name` is `candidates/{id}`."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is not registered; `modelsat candidates list` shows the candidates."
        )
        self.name = name


class RevisionNotFoundError(ModelsatError):
    """The store has no revision of that number (any more); `name` is `revisions/{number}`."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"Revision {number} is not kept; `modelsat candidates revisions` shows those that are."
        )
        self.name = f"revisions/{number}"


class AdaptationNotFoundError(ModelsatError):
    """No adaptation of that ID is listed (any more); `name` is `adaptations/{id}`."""

    def __init__(self, identifier: str) -> None:
        super().__init__(
            f"Adaptation {identifier} is not listed; `modelsat adaptation history` shows those"
            " that are."
        )
        self.name = f"adaptations/{identifier}"


class DecisionNotFoundError(ModelsatError):
    """The caller has asked for no such decision; `name` is `decisions/{id}`."""

    def __init__(self, identifier: str) -> None:
        super().__init__(
            f"decisions/{identifier[:80]} is no decision of this caller; send decision_id of your"
            " own RouteResponse, or use a token with the role 'outcomes'."
        )
        self.name = f"decisions/{identifier[:80]}"


class RevisionLostError(ModelsatError):
    """The store's history does not contain the revision that a request demands."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"min_revision_token: revision {number} of it is not in the history of the candidate"
            " store, which was restored or failed over since. Read the candidates, and repeat the"
            " change if it is missing."
        )


class AlreadyExistsError(ModelsatError):
    """A different resource of that name exists.

    name: of the resource, `candidates/{id}` by default. problem: the rest of a sentence that begins
    with the name. resource_type: full name of its proto message.
    """

    def __init__(
        self,
        name: str,
        problem: str = "is already registered; update it, or choose another ID.",
        resource_type: str = "modelsat.v1.Candidate",
    ) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.resource_type = resource_type


class EtagMismatchError(ModelsatError):
    """The candidate changed since the caller read it.

    sent: etag in the request. current: etag of the candidate now.
    """

    def __init__(self, name: str, sent: str, current: str) -> None:
        super().__init__(f"{name} has etag {current}, the request has {sent}; read it again.")
        self.name = name


class ConflictError(ModelsatError):
    """The store is at another revision than the change was computed for; nothing was changed."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(
            f"The store is at revision {found}, the change was made for {expected}: other servers"
            " changed it first. Nothing was changed; send the change again."
        )


class NoEligibleCandidateError(ModelsatError):
    """No candidate meets the hard constraints.

    reasons: candidate ID -> reason, those that come closest to being eligible first. The message
    has each reason once, so that the first ones are read however many candidates there are.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        names: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            names.setdefault(reason, []).append(name)
        listed = []
        for reason, group in names.items():
            few = len(group) <= LISTED_CANDIDATES
            subject = ", ".join(group) if few else f"{len(group)} of {len(reasons)}"
            listed.append(f"{subject}: {reason}")
        super().__init__(
            f"No candidate is eligible. {'. '.join(listed)}."
            if reasons
            else "No candidate is registered; `modelsat candidates create FILE` registers one."
        )
        self.reasons = dict(reasons)

    def for_outsiders(self) -> NoEligibleCandidateError:
        """Return the error without IDs, numbers and prices of candidates, for a caller who may not
        list them."""
        if not self.reasons:  # says nothing of any candidate
            return self
        known = dict.fromkeys(_without_figures(reason) for reason in self.reasons.values())
        error = NoEligibleCandidateError({})
        error.args = (f"No candidate is eligible: {'; '.join(known)}.",)
        return error


ASKED_WORDS = "missing "  # begins a reason that names only what the request itself asked for
# Beginning of a reason -> what outsiders may know of it. Any other reason is "excluded" to them.
PUBLIC_REASONS = {
    "not among the allowed candidates": "not among the allowed candidates",
    "among the denied candidates": "among the denied candidates",
    "context window": "the context window is too small, or unknown",
    "answers in ": "the API of the request is not one of the candidate's",
    "latency unknown": "the expected latency is above the maximum, or unknown",
    "expected latency": "the expected latency is above the maximum, or unknown",
    "region ": "the region is not one of those allowed, or unknown",
    "input price": "the input price is above the maximum, or unknown",
    "output price": "the output price is above the maximum, or unknown",
    "expected cost": "the expected cost is above the budget, or unknown",
    "price unknown": "the expected cost is above the budget, or unknown",
}


def _without_figures(reason: str) -> str:
    if reason.startswith(ASKED_WORDS):
        return reason
    matches = (text for start, text in PUBLIC_REASONS.items() if reason.startswith(start))
    return next(matches, "excluded")


class OverloadedError(ModelsatError):
    """The queue is full; callers should retry after `retry_after_s` seconds.

    waiting, limit: how much is in the queue, and how much may be. unit: of both.
    """

    def __init__(
        self, waiting: int, limit: int, retry_after_s: float, unit: str = "requests"
    ) -> None:
        super().__init__(f"The queue is full: {waiting} {unit} are waiting, the limit is {limit}.")
        self.retry_after_s = retry_after_s


class TooManyCallsError(OverloadedError):
    """A call was refused before its method, because of too many others. what: why, a sentence."""

    def __init__(self, what: str, retry_after_s: float) -> None:
        ModelsatError.__init__(self, what)
        self.retry_after_s = retry_after_s


class WaitTooLongError(OverloadedError):
    """The queue is too long for the caller's deadline; retry after `retry_after_s` seconds.

    wait_s: estimated wait in the queue. left_s: time until the deadline.
    """

    def __init__(self, waiting: int, wait_s: float, left_s: float, retry_after_s: float) -> None:
        ModelsatError.__init__(
            self,
            f"{waiting} requests are waiting, about {wait_s:.2f} s; the deadline leaves"
            f" {left_s:.2f} s. Retry later, or use another server.",
        )
        self.retry_after_s = retry_after_s


class DeadlineError(ModelsatError):
    """The caller's deadline passed, or would pass, before the instruction was scored."""


class UnavailableError(ModelsatError):
    """The server is stopping, or the stage that had the request failed."""


class UnauthenticatedError(ModelsatError):
    """The call has no token, or an unknown one; the message never contains it."""


class PermissionDeniedError(ModelsatError):
    """The token's role may not call the method."""

    def __init__(self, name: str, role: str, method: str, needed: Collection[str]) -> None:
        super().__init__(
            f"The token {name!r} has the role {role!r}; {method} needs"
            f" {' or '.join(repr(n) for n in sorted(needed))}."
        )


class BundleError(ModelsatError):
    """A checkpoint or bundle cannot be used; the message says what was found and expected."""


class StoreError(ModelsatError):
    """A store of candidates or outcomes cannot be read or written; it is left as it is.

    unreachable: True if the database did not answer, so that trying again later may help.
    """

    unreachable = False
