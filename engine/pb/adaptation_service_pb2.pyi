import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Adaptation(_message.Message):
    __slots__ = ("id", "active", "reason", "as_of", "frozen", "instructions", "outcomes", "unused_outcomes", "log_loss_before", "log_loss_after", "log_loss_standard_error", "fit_seconds")
    class OutcomesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class UnusedOutcomesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    UNUSED_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    LOG_LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LOG_LOSS_AFTER_FIELD_NUMBER: _ClassVar[int]
    LOG_LOSS_STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    FIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    active: bool
    reason: str
    as_of: _timestamp_pb2.Timestamp
    frozen: bool
    instructions: int
    outcomes: _containers.ScalarMap[str, int]
    unused_outcomes: _containers.ScalarMap[str, int]
    log_loss_before: float
    log_loss_after: float
    log_loss_standard_error: float
    fit_seconds: float
    def __init__(self, id: _Optional[str] = ..., active: _Optional[bool] = ..., reason: _Optional[str] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., frozen: _Optional[bool] = ..., instructions: _Optional[int] = ..., outcomes: _Optional[_Mapping[str, int]] = ..., unused_outcomes: _Optional[_Mapping[str, int]] = ..., log_loss_before: _Optional[float] = ..., log_loss_after: _Optional[float] = ..., log_loss_standard_error: _Optional[float] = ..., fit_seconds: _Optional[float] = ...) -> None: ...

class GetAdaptationRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptationsRequest(_message.Message):
    __slots__ = ("page_size",)
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    def __init__(self, page_size: _Optional[int] = ...) -> None: ...

class ListAdaptationsResponse(_message.Message):
    __slots__ = ("adaptations",)
    ADAPTATIONS_FIELD_NUMBER: _ClassVar[int]
    adaptations: _containers.RepeatedCompositeFieldContainer[Adaptation]
    def __init__(self, adaptations: _Optional[_Iterable[_Union[Adaptation, _Mapping]]] = ...) -> None: ...

class FreezeAdaptationRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnfreezeAdaptationRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RollbackAdaptationRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ResetAdaptationRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainDecisionRequest(_message.Message):
    __slots__ = ("decision_id",)
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    def __init__(self, decision_id: _Optional[str] = ...) -> None: ...

class ExplainDecisionResponse(_message.Message):
    __slots__ = ("candidates", "adaptation_id", "neighbors", "decided_by", "tasks")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    ADAPTATION_ID_FIELD_NUMBER: _ClassVar[int]
    NEIGHBORS_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[ExplainedCandidate]
    adaptation_id: str
    neighbors: _containers.RepeatedCompositeFieldContainer[RememberedInstruction]
    decided_by: str
    tasks: _containers.RepeatedCompositeFieldContainer[MatchedTask]
    def __init__(self, candidates: _Optional[_Iterable[_Union[ExplainedCandidate, _Mapping]]] = ..., adaptation_id: _Optional[str] = ..., neighbors: _Optional[_Iterable[_Union[RememberedInstruction, _Mapping]]] = ..., decided_by: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[MatchedTask, _Mapping]]] = ...) -> None: ...

class MatchedTask(_message.Message):
    __slots__ = ("task_keywords", "weight", "by_questions")
    TASK_KEYWORDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BY_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    task_keywords: str
    weight: float
    by_questions: bool
    def __init__(self, task_keywords: _Optional[str] = ..., weight: _Optional[float] = ..., by_questions: _Optional[bool] = ...) -> None: ...

class ExplainedCandidate(_message.Message):
    __slots__ = ("candidate", "base_probability", "probability", "standard_error", "offset", "common", "relative", "match")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    BASE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    base_probability: float
    probability: float
    standard_error: float
    offset: float
    common: float
    relative: float
    match: float
    def __init__(self, candidate: _Optional[str] = ..., base_probability: _Optional[float] = ..., probability: _Optional[float] = ..., standard_error: _Optional[float] = ..., offset: _Optional[float] = ..., common: _Optional[float] = ..., relative: _Optional[float] = ..., match: _Optional[float] = ...) -> None: ...

class RememberedInstruction(_message.Message):
    __slots__ = ("similarity", "scores", "category", "recorded_at", "provenance")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    RECORDED_AT_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    similarity: float
    scores: _containers.ScalarMap[str, float]
    category: str
    recorded_at: _timestamp_pb2.Timestamp
    provenance: str
    def __init__(self, similarity: _Optional[float] = ..., scores: _Optional[_Mapping[str, float]] = ..., category: _Optional[str] = ..., recorded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., provenance: _Optional[str] = ...) -> None: ...
