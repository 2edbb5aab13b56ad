import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]

class DecisionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_KIND_UNSPECIFIED: _ClassVar[DecisionKind]
    DECISION_KIND_RANKED: _ClassVar[DecisionKind]
    DECISION_KIND_SESSION_AFFINITY: _ClassVar[DecisionKind]
    DECISION_KIND_DEFAULTED: _ClassVar[DecisionKind]
    DECISION_KIND_FALLBACK: _ClassVar[DecisionKind]
    DECISION_KIND_EXPLORED: _ClassVar[DecisionKind]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_TOOL: Role
DECISION_KIND_UNSPECIFIED: DecisionKind
DECISION_KIND_RANKED: DecisionKind
DECISION_KIND_SESSION_AFFINITY: DecisionKind
DECISION_KIND_DEFAULTED: DecisionKind
DECISION_KIND_FALLBACK: DecisionKind
DECISION_KIND_EXPLORED: DecisionKind

class RouteRequest(_message.Message):
    __slots__ = ("text", "conversation", "policy", "session", "dry_run", "min_revision_token")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    MIN_REVISION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    text: str
    conversation: Conversation
    policy: Policy
    session: Session
    dry_run: bool
    min_revision_token: str
    def __init__(self, text: _Optional[str] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., dry_run: _Optional[bool] = ..., min_revision_token: _Optional[str] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "switching_margin")
    ID_FIELD_NUMBER: _ClassVar[int]
    SWITCHING_MARGIN_FIELD_NUMBER: _ClassVar[int]
    id: str
    switching_margin: float
    def __init__(self, id: _Optional[str] = ..., switching_margin: _Optional[float] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages", "other_texts", "media_tokens", "uncounted")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    OTHER_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNCOUNTED_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    other_texts: _containers.RepeatedScalarFieldContainer[str]
    media_tokens: int
    uncounted: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., other_texts: _Optional[_Iterable[str]] = ..., media_tokens: _Optional[int] = ..., uncounted: _Optional[_Iterable[str]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "text_parts", "failed")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_PARTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    role: Role
    text_parts: _containers.RepeatedScalarFieldContainer[str]
    failed: bool
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., text_parts: _Optional[_Iterable[str]] = ..., failed: _Optional[bool] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("cost_sensitivity", "target_probability", "budget_usd", "willingness_to_pay_usd", "allowed_candidates", "denied_candidates", "expected_output_tokens", "ranking_size", "required_modalities", "required_features", "required_tags", "allowed_regions", "min_context_window", "max_input_usd_per_million", "max_output_usd_per_million", "abstain_below_probability", "max_ood_score", "default_candidate", "confidence", "escalate_after_failures", "required_api", "max_latency_ms")
    COST_SENSITIVITY_FIELD_NUMBER: _ClassVar[int]
    TARGET_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    BUDGET_USD_FIELD_NUMBER: _ClassVar[int]
    WILLINGNESS_TO_PAY_USD_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    DENIED_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RANKING_SIZE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_MODALITIES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FEATURES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_TAGS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_REGIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_CONTEXT_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    ABSTAIN_BELOW_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    MAX_OOD_SCORE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ESCALATE_AFTER_FAILURES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_API_FIELD_NUMBER: _ClassVar[int]
    MAX_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    cost_sensitivity: float
    target_probability: float
    budget_usd: float
    willingness_to_pay_usd: float
    allowed_candidates: _containers.RepeatedScalarFieldContainer[str]
    denied_candidates: _containers.RepeatedScalarFieldContainer[str]
    expected_output_tokens: int
    ranking_size: int
    required_modalities: _containers.RepeatedScalarFieldContainer[str]
    required_features: _containers.RepeatedScalarFieldContainer[str]
    required_tags: _containers.RepeatedScalarFieldContainer[str]
    allowed_regions: _containers.RepeatedScalarFieldContainer[str]
    min_context_window: int
    max_input_usd_per_million: float
    max_output_usd_per_million: float
    abstain_below_probability: float
    max_ood_score: float
    default_candidate: str
    confidence: float
    escalate_after_failures: int
    required_api: str
    max_latency_ms: float
    def __init__(self, cost_sensitivity: _Optional[float] = ..., target_probability: _Optional[float] = ..., budget_usd: _Optional[float] = ..., willingness_to_pay_usd: _Optional[float] = ..., allowed_candidates: _Optional[_Iterable[str]] = ..., denied_candidates: _Optional[_Iterable[str]] = ..., expected_output_tokens: _Optional[int] = ..., ranking_size: _Optional[int] = ..., required_modalities: _Optional[_Iterable[str]] = ..., required_features: _Optional[_Iterable[str]] = ..., required_tags: _Optional[_Iterable[str]] = ..., allowed_regions: _Optional[_Iterable[str]] = ..., min_context_window: _Optional[int] = ..., max_input_usd_per_million: _Optional[float] = ..., max_output_usd_per_million: _Optional[float] = ..., abstain_below_probability: _Optional[float] = ..., max_ood_score: _Optional[float] = ..., default_candidate: _Optional[str] = ..., confidence: _Optional[float] = ..., escalate_after_failures: _Optional[int] = ..., required_api: _Optional[str] = ..., max_latency_ms: _Optional[float] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("selected", "reason", "ranking", "excluded", "revision", "timing", "input_tokens", "truncated", "ood_score", "decision_id", "kind", "token_count_method", "uncounted", "revision_token", "adaptation_id", "propensity", "recent_failures")
    SELECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    OOD_SCORE_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_METHOD_FIELD_NUMBER: _ClassVar[int]
    UNCOUNTED_FIELD_NUMBER: _ClassVar[int]
    REVISION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ADAPTATION_ID_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    RECENT_FAILURES_FIELD_NUMBER: _ClassVar[int]
    selected: str
    reason: str
    ranking: _containers.RepeatedCompositeFieldContainer[RankedCandidate]
    excluded: _containers.RepeatedCompositeFieldContainer[ExcludedCandidate]
    revision: int
    timing: Timing
    input_tokens: int
    truncated: bool
    ood_score: float
    decision_id: str
    kind: DecisionKind
    token_count_method: str
    uncounted: _containers.RepeatedScalarFieldContainer[str]
    revision_token: str
    adaptation_id: str
    propensity: float
    recent_failures: int
    def __init__(self, selected: _Optional[str] = ..., reason: _Optional[str] = ..., ranking: _Optional[_Iterable[_Union[RankedCandidate, _Mapping]]] = ..., excluded: _Optional[_Iterable[_Union[ExcludedCandidate, _Mapping]]] = ..., revision: _Optional[int] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., input_tokens: _Optional[int] = ..., truncated: _Optional[bool] = ..., ood_score: _Optional[float] = ..., decision_id: _Optional[str] = ..., kind: _Optional[_Union[DecisionKind, str]] = ..., token_count_method: _Optional[str] = ..., uncounted: _Optional[_Iterable[str]] = ..., revision_token: _Optional[str] = ..., adaptation_id: _Optional[str] = ..., propensity: _Optional[float] = ..., recent_failures: _Optional[int] = ...) -> None: ...

class BatchRouteRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RouteRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RouteRequest, _Mapping]]] = ...) -> None: ...

class BatchRouteResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RouteResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RouteResult, _Mapping]]] = ...) -> None: ...

class RouteResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: RouteResponse
    error: RouteError
    def __init__(self, response: _Optional[_Union[RouteResponse, _Mapping]] = ..., error: _Optional[_Union[RouteError, _Mapping]] = ...) -> None: ...

class RouteError(_message.Message):
    __slots__ = ("code", "message", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StreamRouteRequest(_message.Message):
    __slots__ = ("id", "request", "outcome")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: RouteRequest
    outcome: RecordOutcomeRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[RouteRequest, _Mapping]] = ..., outcome: _Optional[_Union[RecordOutcomeRequest, _Mapping]] = ...) -> None: ...

class StreamRouteResponse(_message.Message):
    __slots__ = ("id", "result", "recorded")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    id: str
    result: RouteResult
    recorded: RecordOutcomeResponse
    def __init__(self, id: _Optional[str] = ..., result: _Optional[_Union[RouteResult, _Mapping]] = ..., recorded: _Optional[_Union[RecordOutcomeResponse, _Mapping]] = ...) -> None: ...

class RecordOutcomeRequest(_message.Message):
    __slots__ = ("decision_id", "candidate", "score", "text", "category", "usage", "store_text")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    STORE_TEXT_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    candidate: str
    score: float
    text: str
    category: str
    usage: Usage
    store_text: bool
    def __init__(self, decision_id: _Optional[str] = ..., candidate: _Optional[str] = ..., score: _Optional[float] = ..., text: _Optional[str] = ..., category: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., store_text: _Optional[bool] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "reasoning_tokens", "cost_usd", "latency", "error")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float
    latency: _duration_pb2.Duration
    error: str
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., cost_usd: _Optional[float] = ..., latency: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class RecordComparisonRequest(_message.Message):
    __slots__ = ("decision_id", "text", "store_text", "candidates", "category", "grader", "disagreement")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STORE_TEXT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    GRADER_FIELD_NUMBER: _ClassVar[int]
    DISAGREEMENT_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    text: str
    store_text: bool
    candidates: _containers.RepeatedCompositeFieldContainer[ComparedCandidate]
    category: str
    grader: str
    disagreement: float
    def __init__(self, decision_id: _Optional[str] = ..., text: _Optional[str] = ..., store_text: _Optional[bool] = ..., candidates: _Optional[_Iterable[_Union[ComparedCandidate, _Mapping]]] = ..., category: _Optional[str] = ..., grader: _Optional[str] = ..., disagreement: _Optional[float] = ...) -> None: ...

class ComparedCandidate(_message.Message):
    __slots__ = ("candidate", "score", "usage")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    score: float
    usage: Usage
    def __init__(self, candidate: _Optional[str] = ..., score: _Optional[float] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class RecordComparisonResponse(_message.Message):
    __slots__ = ("recorded",)
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    recorded: int
    def __init__(self, recorded: _Optional[int] = ...) -> None: ...

class RecordOutcomeResponse(_message.Message):
    __slots__ = ("recorded",)
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    recorded: bool
    def __init__(self, recorded: _Optional[bool] = ...) -> None: ...

class RankedCandidate(_message.Message):
    __slots__ = ("candidate", "probability", "expected_cost_usd", "utility", "base_probability", "standard_error", "similar_outcomes")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_COST_USD_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    BASE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    probability: float
    expected_cost_usd: float
    utility: float
    base_probability: float
    standard_error: float
    similar_outcomes: float
    def __init__(self, candidate: _Optional[str] = ..., probability: _Optional[float] = ..., expected_cost_usd: _Optional[float] = ..., utility: _Optional[float] = ..., base_probability: _Optional[float] = ..., standard_error: _Optional[float] = ..., similar_outcomes: _Optional[float] = ...) -> None: ...

class ExcludedCandidate(_message.Message):
    __slots__ = ("candidate", "reason")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    reason: str
    def __init__(self, candidate: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("tokenize", "queue", "inference", "scoring", "selection", "total")
    TOKENIZE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SCORING_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    tokenize: _duration_pb2.Duration
    queue: _duration_pb2.Duration
    inference: _duration_pb2.Duration
    scoring: _duration_pb2.Duration
    selection: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, tokenize: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., inference: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., scoring: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., selection: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "backend", "scoring_kernel", "prompt_layout", "aptitude_representation", "num_layers", "prompt_version", "encoder_id", "revision", "candidates", "max_instruction_tokens", "max_text_bytes", "revision_token", "store_connected", "table_from_file", "adaptation_id", "remembered_instructions")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    SCORING_KERNEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    APTITUDE_REPRESENTATION_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENCODER_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_INSTRUCTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    REVISION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STORE_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    TABLE_FROM_FILE_FIELD_NUMBER: _ClassVar[int]
    ADAPTATION_ID_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    version: str
    backend: str
    scoring_kernel: str
    prompt_layout: str
    aptitude_representation: str
    num_layers: int
    prompt_version: str
    encoder_id: str
    revision: int
    candidates: int
    max_instruction_tokens: int
    max_text_bytes: int
    revision_token: str
    store_connected: bool
    table_from_file: bool
    adaptation_id: str
    remembered_instructions: int
    def __init__(self, version: _Optional[str] = ..., backend: _Optional[str] = ..., scoring_kernel: _Optional[str] = ..., prompt_layout: _Optional[str] = ..., aptitude_representation: _Optional[str] = ..., num_layers: _Optional[int] = ..., prompt_version: _Optional[str] = ..., encoder_id: _Optional[str] = ..., revision: _Optional[int] = ..., candidates: _Optional[int] = ..., max_instruction_tokens: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., revision_token: _Optional[str] = ..., store_connected: _Optional[bool] = ..., table_from_file: _Optional[bool] = ..., adaptation_id: _Optional[str] = ..., remembered_instructions: _Optional[int] = ...) -> None: ...
