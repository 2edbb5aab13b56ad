"""LiteLLM proxy callback: modelsat picks the model of requests for the alias `auto`.

In LiteLLM's config.yaml, with modelsat installed in the same environment:

    litellm_settings:
      callbacks: engine.integrations.litellm.router

Settings come from environment variables, see `options_from`. Any failure sends the request to the
fallback model. A candidate's ID is its model_name in LiteLLM, and the best ranked candidate that
LiteLLM knows is chosen.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import Policy
from engine.client import AsyncClient, Credentials, ModelsatClientError, RouteDecision
from engine.client.channel import DEFAULT_SERVER, INSECURE, TOKEN_VARIABLE
from engine.client.requests import conversation_from_body

ENVIRONMENT = "LITELLM_MODELSAT_"  # MODELSAT_ is the server's
SETTINGS = (
    "SERVER, ALIAS, FALLBACK, TIMEOUT_MS, COST_SENSITIVITY, CONFIDENCE, TLS_CA, TLS_CERT, TLS_KEY"
)
METADATA_KEY = "modelsat"  # of the choice in a request's metadata
MODEL_HEADER, HEADER_PREFIX = "x-selected-model", "x-modelsat-"
# LiteLLM's names of chat completions, completions, responses and Anthropic's messages.
_PATHS = {
    "acompletion": "/chat/completions",
    "atext_completion": "/completions",
    "aresponses": "/responses",
    "anthropic_messages": "/messages",
}
ROUTED_CALLS = tuple(_PATHS)
_OWN_FIELDS = frozenset(  # of LiteLLM, in the data of a request
    (
        *("proxy_server_request", "litellm_metadata", "litellm_call_id", "litellm_logging_obj"),
        *("secret_fields", "standard_logging_object", "user_api_key_dict", "litellm_params"),
    )
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallbackOptions:
    """Settings of the callback.

    Attributes:
        server: Address of the modelsat server.
        alias: Model name of the requests to route.
        fallback: Model to use if there is no choice. Empty keeps the alias, which LiteLLM then
            looks up in its own configuration.
        timeout_s: Seconds to wait for a choice.
        cost_sensitivity: Objective of the policy, see Policy in the proto.
        confidence: See Policy in the proto; None for the server's setting.
        credentials: TLS files and token.
    """

    server: str = DEFAULT_SERVER
    alias: str = "auto"
    fallback: str = ""
    timeout_s: float = 0.2
    cost_sensitivity: float = 0.0
    confidence: float | None = None
    credentials: Credentials = INSECURE


@dataclass(frozen=True)
class ModelChoice:
    """The model for one request.

    Attributes:
        model: Its model_name in LiteLLM.
        kind: See `RouteDecision.kind`, or "unrouted" if the fallback was used.
        decision_id: See `RouteDecision.decision_id`; empty if unrouted.
        probability: Of a good answer; None if unrouted.
        why: Cause of an unrouted request, such as a gRPC status name.
    """

    model: str
    kind: str
    decision_id: str = ""
    probability: float | None = None
    why: str = ""

    def headers(self) -> dict[str, str]:
        """Return the headers to add to the reply."""
        values = {"kind": self.kind, "decision-id": self.decision_id, "why": self.why}
        return {MODEL_HEADER: self.model} | {
            HEADER_PREFIX + name: value for name, value in values.items() if value
        }


def options_from(environ: Mapping[str, str]) -> CallbackOptions:
    """Read the variables LITELLM_MODELSAT_* (SETTINGS) and MODELSAT_TOKEN.

    Raises one InvalidInputError that lists every wrong value.
    """
    values = {
        name.removeprefix(ENVIRONMENT).lower(): value.strip()
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT) and value.strip()
    }
    problems: list[Violation] = []

    def number(name: str, default: float, minimum: float) -> float:
        text = values.pop(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not minimum <= value < math.inf:
            problem = f"is {text!r}; expected a number of at least {minimum:g}."
            problems.append(Violation(ENVIRONMENT + name.upper(), problem))
        return value

    options = CallbackOptions(
        server=values.pop("server", DEFAULT_SERVER),
        alias=values.pop("alias", "auto"),
        fallback=values.pop("fallback", ""),
        timeout_s=number("timeout_ms", 200, 1) / 1000,
        cost_sensitivity=number("cost_sensitivity", 0, 0),
        confidence=number("confidence", 0, 0) if "confidence" in values else None,
        credentials=Credentials(
            tls_ca=values.pop("tls_ca", None),
            tls_cert=values.pop("tls_cert", None),
            tls_key=values.pop("tls_key", None),
            token=environ.get(TOKEN_VARIABLE, "").strip(),
        ),
    )
    problems += [
        Violation(ENVIRONMENT + name.upper(), f"is not a setting; expected one of {SETTINGS}.")
        for name in values
    ]
    if problems:
        raise InvalidInputError(*problems)
    return options


def choose_model(decision: RouteDecision, models: Collection[str]) -> ModelChoice | None:
    """Return the best ranked candidate that is in `models`; None if none is."""
    for ranked in decision.ranking:  # the selected one is first
        if ranked.candidate in models:
            probability = round(ranked.probability, 4)
            return ModelChoice(ranked.candidate, decision.kind, decision.decision_id, probability)
    return None


def _models() -> Collection[str]:
    """Return model_name of every model that the proxy has now."""
    from litellm.proxy import proxy_server  # imported late: it loads this module

    router = proxy_server.llm_router
    return router.model_names if router is not None else ()


class RoutingCallback(CustomLogger):  # type: ignore[misc]  # litellm is not installed where this is checked
    """The callback. It connects at the first request, in the process that serves it."""

    def __init__(self, options: CallbackOptions) -> None:
        super().__init__()
        self._options = options
        self._policy = Policy(value=options.cost_sensitivity, confidence=options.confidence)
        self._client: AsyncClient | None = None
        self._failure = ""

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Set the model of a request for the alias; LiteLLM calls this before every request."""
        key = _metadata_of(data)
        _metadata(data, key).pop(METADATA_KEY, None)  # a caller must not set our headers
        if data.get("model") == self._options.alias and call_type in ROUTED_CALLS:
            choice = await self._choose(data, call_type)
            data["model"] = choice.model
            data[key] = {**_metadata(data, key), METADATA_KEY: asdict(choice)}
        return data

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any, **_: Any
    ) -> dict[str, str] | None:
        """Return the headers that describe the choice; LiteLLM calls this for every reply."""
        chosen = _metadata(data, _metadata_of(data)).get(METADATA_KEY)
        return ModelChoice(**chosen).headers() if chosen else None

    async def _choose(self, data: Mapping[str, Any], call_type: str) -> ModelChoice:
        try:
            if self._client is None:
                o = self._options
                self._client = AsyncClient(o.server, o.timeout_s, o.credentials, retries=False)
            conversation = conversation_from_body(_body_of(data), _PATHS.get(call_type, ""))
            decision = await self._client.route(conversation, self._policy)
            choice = choose_model(decision, _models())
            why = "" if choice else "no candidate is a model of this proxy"
        except ModelsatClientError as error:
            choice, why = None, error.code
        except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
            choice, why = None, type(error).__name__
        self._log_change(why)
        return choice or ModelChoice(
            self._options.fallback or self._options.alias, "unrouted", why=why
        )

    def _log_change(self, failure: str) -> None:
        """Log the first failure of a kind, and the recovery; never the text of a request."""
        if failure == self._failure:
            return
        self._failure = failure
        if failure:
            log.warning("routing failed (%s), using the fallback model", failure)
        else:
            log.warning("routing recovered")


def _body_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields that the caller sent, as other callbacks left them, without LiteLLM's."""
    request = data.get("proxy_server_request")
    sent = request.get("body") if isinstance(request, Mapping) else None
    if isinstance(sent, Mapping):
        return {name: data.get(name, value) for name, value in sent.items()}
    return {name: value for name, value in data.items() if name not in _OWN_FIELDS}


def _metadata_of(data: Mapping[str, Any]) -> str:
    """Return the key of LiteLLM's own metadata; in some routes `metadata` goes to the provider."""
    return "litellm_metadata" if "litellm_metadata" in data else "metadata"


def _metadata(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the metadata; empty if the caller sent something that is not an object."""
    metadata = data.get(key)
    return metadata if isinstance(metadata, dict) else {}


router = RoutingCallback(options_from(os.environ))
