"""What outcome stores keep: instructions as vectors, and how well candidates did on them.

Shapes: M candidates of a table, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from engine.api.usage import Usage
from engine.bundle.types import Float32Array
from engine.registry.table import Table

Float16Array = NDArray[np.float16]
FINGERPRINT_CHARS = 12


@dataclass(frozen=True)
class ScoredCandidates:
    """The candidates that logits belong to.

    bundle: identity of the weights and the prompt that scored them. ids: M IDs. fingerprints: M
    hashes of their embeddings, so that a candidate that was registered again with other aptitude
    results counts as another one.
    """

    bundle: str
    ids: tuple[str, ...]
    fingerprints: tuple[str, ...]

    @cached_property
    def content(self) -> str:
        """All of it as JSON, equal for equal candidates."""
        return json.dumps([self.bundle, self.ids, self.fingerprints], separators=(",", ":"))

    @classmethod
    def parse(cls, content: str) -> ScoredCandidates:
        """Parse `content`; raises ValueError."""
        bundle, ids, fingerprints = json.loads(content)
        return cls(bundle, tuple(ids), tuple(fingerprints))

    @classmethod
    def of_table(cls, bundle: str, table: Table) -> ScoredCandidates:
        """Return all candidates of `table`."""
        ids = tuple(candidate.id for candidate in table.candidates)
        return cls(bundle, ids, tuple(fingerprint_of(row) for row in table.embeddings))


def fingerprint_of(embedding: Float32Array) -> str:
    """Return a short hash of a candidate's (D,) embedding."""
    content = np.ascontiguousarray(embedding, dtype="<f4").tobytes()
    return hashlib.sha256(content).hexdigest()[:FINGERPRINT_CHARS]


@dataclass(frozen=True, eq=False)
class ScoredInstruction:
    """An instruction as the weights saw it, and who was chosen for it.

    candidates: M of them. embedding: (D,) of the instruction. logits: (M,) log-odds by the weights
    alone, NaN where a candidate was not scored. selected: ID of the chosen one, "" if none was.
    explored: whether it was drawn in place of the first of the ranking. propensity: probability
    with which it was chosen; 1 if the server does not explore.
    """

    candidates: ScoredCandidates
    embedding: Float16Array
    logits: Float16Array
    selected: str = ""
    explored: bool = False
    propensity: float = 1.0

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return self.embedding.nbytes + self.logits.nbytes


@dataclass(frozen=True)
class RecordedOutcome:
    """How well a candidate answered the request of a decision.

    decision_id: of the decision, or what stands for it if the request was not routed here.
    candidate: its ID. score: in [0, 1]. text, category: of the request; "" if not recorded.
    principal: who reports it, "" if callers are not authenticated. usage: of its call. compared:
    whether it was reported as part of a comparison. grader, disagreement: of that comparison.
    propensity: the probability with which the candidate was chosen, None if it was not, or if the
    decision was not remembered; the store reads it from the instruction.
    """

    decision_id: str
    candidate: str
    score: float
    text: str = ""
    category: str = ""
    principal: str = ""
    usage: Usage | None = None
    compared: bool = False
    grader: str = ""
    disagreement: float | None = None
    propensity: float | None = None


@dataclass(frozen=True, eq=False)
class OutcomeReport:
    """The outcomes of one call: of one instruction, by one principal, each candidate once.

    scored: the instruction, if this server remembers it; None otherwise.
    """

    outcomes: Sequence[RecordedOutcome]
    scored: ScoredInstruction | None = None

    @property
    def key(self) -> str:
        """The decision ID of the outcomes."""
        return self.outcomes[0].decision_id


@dataclass(frozen=True)
class OutcomeLimits:
    """Bounds of a store. Beyond them, the oldest of the principal who has most go first.

    outcomes: recorded ones. max_age_days: age at which they are deleted; 0 keeps them.
    instructions, memory_bytes: of those whose vectors are remembered for adaptation; 0 bytes add
    none, and leave those that are there to other servers and to later.
    """

    outcomes: int
    max_age_days: float = 0.0
    instructions: int = 20_000
    memory_bytes: int = 64 << 20


def pack(outcomes: Sequence[tuple[int, float]]) -> bytes:
    """Encode (code, score) pairs: the bytes of a score, then the pairs, little-endian."""
    exact = all(float(np.float32(score)) == score for _, score in outcomes)
    size = 4 if exact else 8
    return bytes([size]) + np.array(list(outcomes), dtype=_pair(size)).tobytes()


def unpack(blob: bytes) -> NDArray[np.void]:
    """Decode `pack`: an array of (code, score) pairs."""
    return np.frombuffer(blob, dtype=_pair(blob[0]), offset=1)


def _pair(size: int) -> np.dtype[np.void]:
    return np.dtype([("code", "<u2"), ("score", f"<f{size}")])


def pack_details(outcomes: Sequence[RecordedOutcome]) -> str:
    """Encode what few reports have as JSON, "" for nothing."""
    usage = {
        o.candidate: {k: v for k, v in asdict(o.usage).items() if v not in (None, "")}
        for o in outcomes
        if o.usage is not None
    }
    first = outcomes[0]
    content = {"usage": usage, "grader": first.grader, "disagreement": first.disagreement}
    content = {key: value for key, value in content.items() if value not in ({}, "", None)}
    return json.dumps(content, separators=(",", ":")) if content else ""
