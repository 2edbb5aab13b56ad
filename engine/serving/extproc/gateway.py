"""What a gateway asks for an HTTP request, whatever protocol it asks in: which model, with which
headers and body; or which HTTP error."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.api.errors import (
    DeadlineError,
    InvalidInputError,
    ModelsatError,
    OverloadedError,
    Violation,
)
from engine.api.limits import MIB, check_text
from engine.routing.decision import Decision
from engine.routing.router import Router
from engine.serving.extproc.body import (
    Instruction,
    instruction,
    is_routed,
    parse,
    with_model,
)
from engine.serving.extproc.overrides import policy_and_session
from engine.serving.rpc.status import HTTP_STATUS, failure_status, reason_of
from engine.serving.settings import HEADER_VALUE, Settings

AT_ONCE_BYTES = 64 * 1024  # of a body that is read in the event loop; 5 ms at worst


class HttpError(ModelsatError):
    """To be answered with that HTTP status. code: a word for programs. retry_after_s: None says
    nothing of it."""

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Options:
    """From Settings. models: candidate id -> what its upstream calls it, where that differs."""

    aliases: frozenset[str]
    model_header: str
    prefix: str
    max_body_bytes: int
    max_held_bytes: int
    max_text_bytes: int
    timeout_s: float
    refuse_unreadable: bool
    ignore_needs: bool
    models: Mapping[str, str]

    @property
    def own_headers(self) -> tuple[str, ...]:
        """Those that a client must not forge."""
        return (self.model_header, self.prefix + "decision-id")


@dataclass(frozen=True)
class HttpRequest:
    """headers: lower-case name -> value; several of a name joined by commas. wishes: of WISHES,
    from metadata, which go before those of the headers."""

    headers: Mapping[str, str]
    wishes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_json(self) -> bool:
        """Whether the body may be read: JSON, or of no declared type, and not compressed."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = self.headers.get("content-encoding", "").strip().lower()
        return (kind in ("", "application/json") or kind.endswith("+json")) and encoding in (
            "",
            "identity",
        )


@dataclass(frozen=True)
class Answer:
    """headers: to be set. body: None leaves it as it came. metadata: of a decision."""

    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """What there is to choose for. model: where the body has it."""

    instruction: Instruction
    model: slice


class Gateway:
    """Routes HTTP requests through one Router."""

    def __init__(self, router: Router, options: Options) -> None:
        self._router = router
        self._reader = ThreadPoolExecutor(1, "bodies")
        self._held_bytes = 0
        self.options = options

    async def answer(self, request: HttpRequest, raw: bytes) -> Answer:
        """Route where the model of the body is an alias; else only say which model was asked for.

        Raises HttpError and what Router.route raises.
        """
        deadline = time.monotonic() + self.options.timeout_s
        read = await self._read(request, raw, deadline)
        if isinstance(read, Answer):
            return read
        decision = await self._route(request, read.instruction, deadline)
        return self._chosen(raw, read.model, decision)

    async def _read(self, request: HttpRequest, raw: bytes, deadline: float) -> Answer | _Asked:
        """A large body in the one thread for it, so that the event loop goes on."""
        if len(raw) <= AT_ONCE_BYTES:
            return self._asked(request, raw)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):  # the loop's clock is time.monotonic()
                return await loop.run_in_executor(self._reader, self._asked, request, raw)
        except TimeoutError:
            raise DeadlineError(
                f"The body was not read within {self.options.timeout_s:g} s; it is large, or others"
                " were read before it."
            ) from None

    def _asked(self, request: HttpRequest, raw: bytes) -> Answer | _Asked:
        """In any thread. What was parsed goes with this call, before the wait for a decision."""
        routed = is_routed(request.headers.get(":path", ""))
        try:
            body = parse(raw)
        except InvalidInputError:
            if routed:
                raise
            return Answer()
        if body.model is None or not HEADER_VALUE.fullmatch(body.model):
            return Answer()
        if not routed or body.model not in self.options.aliases:
            return Answer({self.options.model_header: body.model})
        found = instruction(body)
        check_text(found.text, self.options.max_text_bytes, "instruction")
        return _Asked(found, body.place)

    def hold(self, size: int) -> None:
        """Count that many bytes more of bodies in memory; release() takes them off.

        Raises HttpError 503 where that is too much, and counts nothing.
        """
        if self._held_bytes + size > self.options.max_held_bytes:
            limit = self.options.max_held_bytes
            why = f"Bodies of {self._held_bytes} bytes are being answered, the limit is {limit}."
            raise HttpError(503, "too_many_bodies", why, retry_after_s=1)
        self._held_bytes += size

    def release(self, size: int) -> None:
        """See hold()."""
        self._held_bytes -= size

    def check_readable(self, request: HttpRequest, size: int = 0) -> bool:
        """Whether to read a body of `size` bytes or more. What is not routed is passed on; raises
        HttpError 413 or 415 where it is to be refused."""
        routed, limit = is_routed(request.headers.get(":path", "")), self.options.max_body_bytes
        if not request.is_json and self.options.refuse_unreadable and routed:
            why = "The body is compressed or no JSON; send application/json without an encoding."
            raise HttpError(415, "unsupported_media_type", why)
        if request.is_json and size > limit and routed:
            why = f"The body is {size} bytes or more, the limit is {limit}."
            raise HttpError(413, "body_too_large", why)
        return request.is_json and size <= limit

    async def _route(self, request: HttpRequest, found: Instruction, deadline: float) -> Decision:
        policy, session = policy_and_session(request.wishes, request.headers, self.options.prefix)
        policy = replace(policy, expected_output_tokens=found.answer_tokens, ranking_size=1)
        if not self.options.ignore_needs:
            policy = replace(
                policy, required_modalities=found.modalities, required_features=found.features
            )
        return await self._router.route(
            found.text,
            policy,
            context_chars=found.context_chars,
            deadline=deadline,
            session=session,
        )

    def _chosen(self, raw: bytes, model: slice, decision: Decision) -> Answer:
        identifier = decision.selected.id
        name = self.options.models.get(identifier, identifier)
        model_header, decision_header = self.options.own_headers
        first = decision.ranking[0]
        return Answer(
            {model_header: name, decision_header: decision.id},
            with_model(raw, model, name),
            {
                "selected": decision.selected.name,
                "model": name,
                "decision_id": decision.id,
                "kind": decision.kind,
                "revision": decision.revision,
                "probability": first.probability,
            },
        )


def options_from(settings: Settings) -> Options:
    """Raises InvalidInputError where the file of models is none."""
    return Options(
        aliases=frozenset(a.strip() for a in settings.extproc_model_alias.split(",")),
        model_header=settings.extproc_model_header,
        prefix=settings.extproc_header_prefix,
        max_body_bytes=settings.extproc_max_body_bytes,
        max_held_bytes=settings.extproc_max_buffered_mb * MIB,
        max_text_bytes=settings.max_text_bytes,
        timeout_s=settings.extproc_timeout_ms / 1000,
        refuse_unreadable=settings.extproc_on_unparsable == "refuse",
        ignore_needs=settings.extproc_no_capability_check,
        models=_read_models(settings.extproc_model_map),
    )


def error_of(error: Exception, method: str) -> tuple[int, dict[str, str], str, bytes]:
    """(HTTP status, headers, the word for programs, JSON body with it as OpenAI's and Anthropic's
    clients read it) of anything that was raised; what an operator should see is logged."""
    headers = {"content-type": "application/json"}
    if isinstance(error, HttpError):
        status, code, message = error.status, error.code, str(error)
    else:
        told = failure_status(error, method)
        status = HTTP_STATUS.get(told.code, 500)
        code, message = reason_of(told).lower(), told.message
    if isinstance(error, OverloadedError | HttpError) and error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    kind = {429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    about = {"message": message, "type": kind, "param": None, "code": code}
    return status, headers, code, json.dumps({"type": "error", "error": about}).encode()


def _read_models(file: Path) -> Mapping[str, str]:
    if not file.name:
        return {}
    wrong = f'is {file}; expected a JSON object of names, {{"candidate-id": "upstream name"}}.'
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InvalidInputError(Violation("--extproc-model-map", wrong)) from None
    if not isinstance(found, dict) or not all(
        isinstance(v, str) and HEADER_VALUE.fullmatch(v) for v in found.values()
    ):
        raise InvalidInputError(Violation("--extproc-model-map", wrong))
    return found
