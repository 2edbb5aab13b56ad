"""Route HTTP requests of an OpenAI-compatible API, independent of the gateway's protocol: choose a
model, headers and body for a request, or the HTTP error to answer it with."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.api.conversation.conversation import Needs
from engine.api.conversation.providers import api_of
from engine.api.conversation.reading import ConversationReading, read_body
from engine.api.errors import (
    DeadlineError,
    InvalidInputError,
    ModelsatError,
    NoEligibleCandidateError,
    OverloadedError,
    Violation,
)
from engine.api.limits import MIB
from engine.api.overrides import OVERRIDE_PREFIX, has_lists, policy_and_session
from engine.api.policy import Policy
from engine.api.proto import check_text
from engine.api.text_files import read_utf8
from engine.routing.decision import Decision
from engine.routing.router import Router
from engine.serving.extproc.body import (
    MODEL,
    is_routed,
    parse,
    plain_path,
    takes_any_type,
    with_model,
)
from engine.serving.extproc.named_models import may_name
from engine.serving.rpc.status import HTTP_STATUS, failure_status, reason_of
from engine.serving.settings import (
    EXTPROC_MAX_BODY_BYTES,
    EXTPROC_MAX_FALLBACKS,
    HEADER_VALUE,
    Settings,
)

INLINE_PARSE_BYTES = 64 * 1024  # larger bodies are parsed in a thread; these take 5 ms at worst
DECISION_HEADER = OVERRIDE_PREFIX + "decision-id"
FALLBACK_HEADER = OVERRIDE_PREFIX + "fallback-"  # and a number from 1
log = logging.getLogger(__name__)


class HttpError(ModelsatError):
    """An error to answer with an HTTP status.

    code: for programs, such as "body_too_large". retry_after_s: None sends no Retry-After.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class MemoryBudget:
    """Limit on the bytes of request bodies that are in memory at the same time."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """Give one request a share of the budget, and take it back at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.release()


class Reservation:
    """The share of one request in a MemoryBudget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.size = 0

    def reserve(self, size: int) -> None:
        """Reserve `size` more bytes, or raise HttpError 503 and reserve nothing above the limit."""
        used, limit = self._budget.used_bytes, self._budget.limit_bytes
        if used + size > limit:
            raise HttpError(
                503,
                "too_many_bodies",
                f"Buffered request bodies exceed the limit ({used + size} of {limit} bytes);"
                " retry later.",
                retry_after_s=1,
            )
        self._budget.used_bytes += size
        self.size += size

    def release(self) -> None:
        """Return everything to the budget."""
        self._budget.used_bytes -= self.size
        self.size = 0


@dataclass(frozen=True)
class GatewayOptions:
    """What Settings say about HTTP requests.

    aliases: models to route. models: candidate ID -> the upstream's name for it, if that differs.
    fallbacks: number of next candidates to name in headers.
    """

    aliases: frozenset[str]
    model_header: str
    max_buffered_bytes: int
    max_text_bytes: int
    timeout_s: float
    reject_unparsable: bool
    check_capabilities: bool
    models: Mapping[str, str]
    fallbacks: int = 0

    @property
    def set_headers(self) -> tuple[str, ...]:
        """Names of the headers that a decision may set, and that no client may send."""
        numbered = (f"{FALLBACK_HEADER}{i + 1}" for i in range(EXTPROC_MAX_FALLBACKS))
        return (self.model_header, DECISION_HEADER, *numbered)


@dataclass(frozen=True)
class HttpRequest:
    """headers: lower-case name -> value, values of a repeated name joined by commas. overrides:
    from the gateway's metadata; see overrides.policy_and_session."""

    headers: Mapping[str, str]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path with its query; "" if there is none."""
        return self.headers.get(":path", "")

    @property
    def is_json(self) -> bool:
        """Whether the body can be parsed: not compressed, and JSON or of no declared type.

        Some upstreams do not look at the type.
        """
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = self.headers.get("content-encoding", "").strip().lower()
        is_json = media_type in ("", "application/json") or media_type.endswith("+json")
        is_json = is_json or takes_any_type(self.path)
        return is_json and encoding in ("", "identity")


@dataclass(frozen=True)
class HttpChanges:
    """What to change of a request before it goes on.

    headers: to set. body: None leaves it as it is. metadata: about the decision, if one was made.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _RoutableBody:
    """reading: what to route by. model: position of the alias in the body's bytes."""

    reading: ConversationReading
    model: slice


class Gateway:
    """Routes HTTP requests through one Router."""

    def __init__(self, router: Router, options: GatewayOptions) -> None:
        self._router = router
        self._parser = ThreadPoolExecutor(1, "bodies")
        self.options = options
        self.memory = MemoryBudget(options.max_buffered_bytes)

    async def route(self, request: HttpRequest, raw: bytes) -> HttpChanges:
        """Select a model if the body asks for an alias; otherwise only report the body's model.

        On a path without a choice to make, such as /v1/messages/count_tokens, an alias is replaced
        by a candidate that exists; see Router.standing_candidate.

        Raises:
            HttpError, and what Router.route raises.
        """
        deadline = time.monotonic() + self.options.timeout_s
        parsed = await self._parse(request, raw, deadline)
        if isinstance(parsed, HttpChanges):
            return parsed
        if isinstance(parsed, slice):
            return self._with_standing_candidate(request, raw, parsed)
        reading = parsed.reading
        policy, session = policy_and_session(request.overrides, request.headers)
        needs = reading.needs
        if not self.options.check_capabilities:
            needs = Needs(max_output_tokens=needs.max_output_tokens)
        size = 0 if self.options.fallbacks else 1  # several candidates may have one name
        policy = needs.constrain(replace(self._in_api_of(request, policy), ranking_size=size))
        decision = await self._router.route(
            reading.ask,
            policy,
            context=reading.context,
            deadline=deadline,
            session=reading.session_of(session),
            failures=reading.failures,
        )
        return self._changes(raw, parsed.model, decision)

    def _with_standing_candidate(
        self, request: HttpRequest, raw: bytes, model: slice
    ) -> HttpChanges:
        policy, session = policy_and_session(request.overrides, request.headers)
        policy = self._in_api_of(request, policy)
        identifier = self._router.standing_candidate(policy, session).id
        name = self.options.models.get(identifier, identifier)
        return HttpChanges({self.options.model_header: name}, with_model(raw, model, name))

    def _in_api_of(self, request: HttpRequest, policy: Policy) -> Policy:
        """Return the policy for candidates that answer in the API of the request's path."""
        if not self.options.check_capabilities:
            return policy
        return replace(policy, required_api=api_of(plain_path(request.path)))

    async def _parse(
        self, request: HttpRequest, raw: bytes, deadline: float
    ) -> HttpChanges | slice | _RoutableBody:
        """Parse a large body in a thread, so that the event loop stays responsive.

        Returns:
            What to change if there is nothing to choose; the position of the alias in the body if
            the path leaves no choice; else what to route by.
        """
        if len(raw) <= INLINE_PARSE_BYTES:
            return self._parse_now(request, raw)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):  # the loop's clock is time.monotonic()
                return await loop.run_in_executor(self._parser, self._parse_now, request, raw)
        except TimeoutError:
            raise DeadlineError(
                f"The body was not parsed within {self.options.timeout_s:g} s: it is large, or"
                " other bodies were parsed first."
            ) from None

    def _parse_now(self, request: HttpRequest, raw: bytes) -> HttpChanges | slice | _RoutableBody:
        """From any thread. The parsed body is freed at the end, before the wait for a decision."""
        routed = is_routed(request.path)
        try:
            body = parse(raw)
        except InvalidInputError:
            if routed:
                raise
            return HttpChanges()
        # Some upstreams ignore capitals in the names of members.
        named = [value for key, value in body.members.items() if key.casefold() == MODEL]
        if named and body.model not in self.options.aliases:
            self._check_named(request, named[0] if isinstance(named[0], str) else "", routed)
        if body.model is None or not HEADER_VALUE.fullmatch(body.model):
            return HttpChanges()
        if body.model not in self.options.aliases:
            if (name := self.options.models.get(body.model)) is None:
                return HttpChanges({self.options.model_header: body.model})
            mapped = with_model(raw, body.model_position, name)
            return HttpChanges({self.options.model_header: name}, mapped)
        if not routed:
            return body.model_position
        reading = read_body(body.members, request.path, self._router.token_counter)
        if reading.ask:
            check_text(reading.ask, self.options.max_text_bytes, "instruction")
        return _RoutableBody(reading, body.model_position)

    def _check_named(self, request: HttpRequest, model: str, routed: bool) -> None:
        """Raise HttpError 403 if the lists of candidates exclude the model that a body names."""
        policy, _ = policy_and_session(request.overrides, request.headers)
        names, known = self.options.models, self._router.is_registered
        if not may_name(model, policy, names, known, routed=routed):
            alias = min(self.options.aliases)
            message = f"The request may not use the model that it names; send {alias!r} instead."
            raise HttpError(403, "model_not_allowed", message)

    def should_parse(self, request: HttpRequest, size: int = 0) -> bool:
        """Whether to buffer and parse a body of `size` bytes or more; if not, it passes as it is.

        Raises:
            HttpError: 413 or 415, if such a body is to be rejected.
        """
        routed, is_json = is_routed(request.path), request.is_json
        if not is_json and self.options.reject_unparsable and routed:
            message = (
                "Unsupported body: send application/json without content-encoding, or decompress it"
                " in the gateway before ext_proc."
            )
            raise HttpError(415, "unsupported_media_type", message)
        if not is_json and routed and has_lists(request.overrides, request.headers):
            message = "The models of this request are restricted; send uncompressed JSON."
            raise HttpError(415, "unsupported_media_type", message)
        if is_json and size > EXTPROC_MAX_BODY_BYTES and routed:
            message = f"The body is {size} bytes or more, the limit is {EXTPROC_MAX_BODY_BYTES}."
            raise HttpError(413, "body_too_large", message)
        return is_json and size <= EXTPROC_MAX_BODY_BYTES

    def _changes(self, raw: bytes, model: slice, decision: Decision) -> HttpChanges:
        ids = (ranked.candidate.id for ranked in decision.ranking)
        # Candidates that share a name fail together.
        names = list(dict.fromkeys(self.options.models.get(i, i) for i in ids))
        name = names[0]
        headers = {self.options.model_header: name, DECISION_HEADER: decision.id}
        for i, fallback in enumerate(names[1 : self.options.fallbacks + 1], start=1):
            headers[f"{FALLBACK_HEADER}{i}"] = fallback
        return HttpChanges(
            headers,
            with_model(raw, model, name),
            {
                "selected": decision.selected.name,
                "model": name,
                "decision_id": decision.id,
                "kind": decision.kind,
                "revision": decision.revision,
                "revision_token": decision.revision_token,
                "probability": decision.ranking[0].probability,
                "input_tokens": decision.prompt.input_tokens,
                "token_count_method": decision.prompt.token_count_method,
            },
        )


def options_from(settings: Settings) -> GatewayOptions:
    """Read the settings of ext_proc.

    Raises:
        InvalidInputError: the file of --extproc-model-map is unusable.
    """
    return GatewayOptions(
        aliases=frozenset(a.strip() for a in settings.extproc_model_alias.split(",")),
        model_header=settings.extproc_model_header,
        max_buffered_bytes=settings.extproc_max_buffered_mb * MIB,
        max_text_bytes=settings.max_text_bytes,
        timeout_s=settings.extproc_timeout_ms / 1000,
        reject_unparsable=settings.extproc_on_unparsable == "reject",
        check_capabilities=not settings.extproc_no_capability_check,
        models=_read_models(settings.extproc_model_map),
        fallbacks=settings.extproc_fallbacks,
    )


def error_response(error: Exception, method: str) -> tuple[int, dict[str, str], str, bytes]:
    """Return (HTTP status, headers, code, JSON body) for anything that was raised.

    The body has the form that clients of OpenAI's and of Anthropic's API look for. The code is
    lower-case, such as "no_eligible_candidate".
    """
    headers = {"content-type": "application/json"}
    if isinstance(error, HttpError):
        status, code, message = error.status, error.code, str(error)
    else:
        if isinstance(error, NoEligibleCandidateError):
            # The HTTP client is not the gateway, whatever the gateway's token may list.
            log.debug("%s", error)
            error = error.for_outsiders()
        rpc_status = failure_status(error, method)
        status = HTTP_STATUS.get(rpc_status.code, 500)
        code, message = reason_of(rpc_status).lower(), rpc_status.message
    if isinstance(error, OverloadedError | HttpError) and error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    kind = {429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    content = {"message": message, "type": kind, "param": None, "code": code}
    return status, headers, code, json.dumps({"type": "error", "error": content}).encode()


def _read_models(file: Path) -> Mapping[str, str]:
    if not file.name:
        return {}
    invalid = Violation(
        "--extproc-model-map",
        f'is {file}; expected a JSON object of names, {{"candidate-id": "upstream name"}}.',
    )
    try:
        models = json.loads(read_utf8(file))
    except json.JSONDecodeError:
        raise InvalidInputError(invalid) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(
            Violation(invalid.field, f"is {file}, which cannot be read: {reason}.")
        ) from None
    if not isinstance(models, dict) or not all(
        isinstance(v, str) and HEADER_VALUE.fullmatch(v) for v in models.values()
    ):
        raise InvalidInputError(invalid)
    return models
