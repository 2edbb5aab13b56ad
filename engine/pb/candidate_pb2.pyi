from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Candidate(_message.Message):
    __slots__ = ("name", "display_name", "aptitude", "context_window", "input_usd_per_million", "output_usd_per_million", "price_source", "mean_output_tokens", "etag", "modalities", "features", "tags", "regions", "time_to_first_token_ms", "output_tokens_per_s", "cached_input_usd_per_million", "level_standard_error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    APTITUDE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_WINDOW_FIELD_NUMBER: _ClassVar[int]
    INPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    PRICE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    MEAN_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_INPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    aptitude: _containers.RepeatedCompositeFieldContainer[TaskResult]
    context_window: int
    input_usd_per_million: float
    output_usd_per_million: float
    price_source: str
    mean_output_tokens: float
    etag: str
    modalities: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    regions: _containers.RepeatedScalarFieldContainer[str]
    time_to_first_token_ms: float
    output_tokens_per_s: float
    cached_input_usd_per_million: float
    level_standard_error: float
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., aptitude: _Optional[_Iterable[_Union[TaskResult, _Mapping]]] = ..., context_window: _Optional[int] = ..., input_usd_per_million: _Optional[float] = ..., output_usd_per_million: _Optional[float] = ..., price_source: _Optional[str] = ..., mean_output_tokens: _Optional[float] = ..., etag: _Optional[str] = ..., modalities: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., regions: _Optional[_Iterable[str]] = ..., time_to_first_token_ms: _Optional[float] = ..., output_tokens_per_s: _Optional[float] = ..., cached_input_usd_per_million: _Optional[float] = ..., level_standard_error: _Optional[float] = ...) -> None: ...

class TaskResult(_message.Message):
    __slots__ = ("task_keywords", "accuracy", "questions", "place")
    TASK_KEYWORDS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    task_keywords: str
    accuracy: float
    questions: int
    place: bytes
    def __init__(self, task_keywords: _Optional[str] = ..., accuracy: _Optional[float] = ..., questions: _Optional[int] = ..., place: _Optional[bytes] = ...) -> None: ...
