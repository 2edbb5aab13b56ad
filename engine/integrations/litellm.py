"""LiteLLM proxy callback: modelsat picks the model of requests for the alias `auto`.

In LiteLLM's config.yaml, with modelsat installed in the same environment:

    litellm_settings:
      callbacks: engine.integrations.litellm.router

Settings come from environment variables, see `options_from`. If there is no choice, the request
goes to the fallback model; if the chosen model fails, LiteLLM tries the next ones of the ranking. A
candidate's ID is its model_name in LiteLLM, or `modelsat_candidate` in its model_info.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from engine.api.errors import InvalidInputError, Violation
from engine.api.overrides import (
    NAMESPACE,
    OVERRIDE_PREFIX,
    combined,
    narrowed,
    policy_and_session,
)
from engine.api.policy import OBJECTIVES, Policy, Session
from engine.client import AsyncClient, ModelsatClientError, RouteDecision
from engine.client.requests import conversation_from_body
from engine.integrations.litellm_options import CallbackOptions, options_from

METADATA_KEYS = ("metadata", "litellm_metadata")  # of a caller's request, and of LiteLLM
MODEL_HEADER = "x-selected-model"
CANDIDATE = "modelsat_candidate"  # in a model's model_info: the ID, if model_name is another
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
class ModelChoice:
    """The model for one request.

    Attributes:
        model: Its model_name in LiteLLM.
        kind: See `RouteDecision.kind`, or "unrouted" if the fallback was used.
        decision_id: See `RouteDecision.decision_id`; empty if unrouted.
        probability: Of a good answer; None if unrouted.
        why: Cause of an unrouted request, such as a gRPC status name.
        candidate: Its ID; empty if unrouted.
        fallbacks: model_name of those to try next, best first.
        failed: model_name of the first choice, if another model answered in its place.
    """

    model: str
    kind: str
    decision_id: str = ""
    probability: float | None = None
    why: str = ""
    candidate: str = ""
    fallbacks: tuple[str, ...] = ()
    failed: str = ""

    def headers(self) -> dict[str, str]:
        """Return the headers to add to the reply."""
        values = {"kind": self.kind, "decision-id": self.decision_id, "why": self.why}
        values |= {"candidate": self.candidate, "failed": self.failed}
        return {MODEL_HEADER: self.model} | {
            OVERRIDE_PREFIX + name: value for name, value in values.items() if value
        }


@dataclass(frozen=True)
class RequestPolicy:
    """What holds for one request: the policy and the session, see `policy_of`."""

    policy: Policy
    session: Session | None = None

    def permits(self, candidate: str) -> bool:
        """Whether the lists of candidates permit one."""
        allowed, denied = self.policy.allowed_candidates, self.policy.denied_candidates
        return candidate not in denied and (not allowed or candidate in allowed)


def policy_of(
    options: CallbackOptions,
    headers: Mapping[str, str],
    caller: Mapping[str, Any],
    team: Mapping[str, Any],
    key: Mapping[str, Any],
) -> RequestPolicy:
    """Combine the environment, the caller's headers and metadata, and the metadata of team and key,
    each of which takes precedence over those before. But a key's lists of candidates only narrow
    those of its team: who makes keys for a team need not be the one who restricts it.

    Raises:
        InvalidInputError: a value or a name is wrong, or no candidate is allowed by team and key.
    """
    fields = combined(caller, narrowed(team, key))
    sent = {
        name: value
        for name, value in headers.items()
        if name.startswith(OVERRIDE_PREFIX) and value.strip(" ,")
    }
    objectives = {OVERRIDE_PREFIX + name.replace("_", "-") for name in OBJECTIVES}
    defaults = dict(options.policy)
    if not objectives.isdisjoint(sent):
        defaults = {name: value for name, value in defaults.items() if name not in objectives}
    return RequestPolicy(*policy_and_session(fields, {**defaults, **sent}))


def choose_models(
    decision: RouteDecision, models: Mapping[str, str], fallbacks: int
) -> ModelChoice | None:
    """Return the best ranked candidate among `models` and the next ones; None if there is none.

    models: candidate ID -> model_name.
    """
    ranked = [r for r in decision.ranking if r.candidate in models]  # the selected one is first
    if not ranked:
        return None
    first, *others = ranked
    return ModelChoice(
        models[first.candidate],
        decision.kind,
        decision.decision_id,
        round(first.probability, 4),
        candidate=first.candidate,
        fallbacks=tuple(models[r.candidate] for r in others[:fallbacks]),
    )


def _models() -> dict[str, str]:
    """Return candidate ID -> model_name of every model that the proxy has now."""
    router = _router()
    models = {name: name for name in router.model_names} if router is not None else {}
    for entry in getattr(router, "model_list", None) or ():
        if candidate := (entry.get("model_info") or {}).get(CANDIDATE):
            models.pop(entry["model_name"], None)
            models[str(candidate)] = entry["model_name"]
    return models


def _deployments(model: str) -> int:
    """Return among how many deployments the proxy balances the load of a model."""
    entries = getattr(_router(), "model_list", None) or ()
    return sum(entry.get("model_name") == model for entry in entries)


def _router() -> Any:
    """Return the router of the proxy, None before it has one."""
    from litellm.proxy import proxy_server  # imported late: it loads this module

    return proxy_server.llm_router


class RoutingCallback(CustomLogger):  # type: ignore[misc]  # litellm is not installed where this is checked
    """The callback. It connects at the first request, in the process that serves it."""

    def __init__(self, options: CallbackOptions) -> None:
        super().__init__()
        self._options = options
        self._client: AsyncClient | None = None
        self._failure = ""

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Set the model of a request for the alias; LiteLLM calls this before every request."""
        overrides = _take_overrides(data)  # a caller must not set our headers
        if data.get("model") != self._options.alias or call_type not in ROUTED_CALLS:
            return data
        try:
            asked = policy_of(
                self._options,
                _headers_of(data),
                _fields(overrides),
                _fields(_metadata(user_api_key_dict, "team_metadata").get(NAMESPACE)),
                _fields(_metadata(user_api_key_dict, "metadata").get(NAMESPACE)),
            )
        except InvalidInputError as error:
            raise _http_error(400, str(error)) from None
        choice = await self._choose(data, call_type, asked)
        data["model"] = choice.model
        if choice.fallbacks and "fallbacks" not in data:
            data["fallbacks"] = list(choice.fallbacks)
            if _deployments(choice.model) == 1:  # the next model is better than the same again
                data.setdefault("num_retries", 0)
        key = _own_metadata(data)
        data[key] = {**_metadata(data, key), NAMESPACE: asdict(choice)}
        return data

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any, **_: Any
    ) -> dict[str, str] | None:
        """Return the headers that describe the choice; LiteLLM calls this for every reply."""
        chosen = _metadata(data, _own_metadata(data)).get(NAMESPACE)
        if not chosen:
            return None
        choice = ModelChoice(**chosen)
        answered = getattr(data.get("deployment"), "model_name", "")
        if answered in choice.fallbacks:
            ids = {model: candidate for candidate, model in _models().items()}
            choice = replace(
                choice, model=answered, candidate=ids.get(answered, ""), failed=choice.model
            )
        return choice.headers()

    async def _choose(
        self, data: Mapping[str, Any], call_type: str, asked: RequestPolicy
    ) -> ModelChoice:
        models: dict[str, str] = {}
        try:
            models = _models()
            if self._client is None:
                o = self._options
                self._client = AsyncClient(o.server, o.timeout_s, o.credentials, retries=False)
            conversation = conversation_from_body(_body_of(data), _PATHS.get(call_type, ""))
            decision = await self._client.route(conversation, asked.policy, session=asked.session)
            choice = choose_models(decision, models, self._options.fallbacks)
            why = "" if choice else "no candidate is a model of this proxy"
        except ModelsatClientError as error:
            # NO_ELIGIBLE_CANDIDATE says more than FAILED_PRECONDITION.
            is_state = error.code == "FAILED_PRECONDITION"
            choice, why = None, error.reason if is_state and error.reason else error.code
        except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
            choice, why = None, type(error).__name__
        self._log_change(why)
        return choice or self._without_choice(asked, models, why)

    def _without_choice(
        self, asked: RequestPolicy, models: Mapping[str, str], why: str
    ) -> ModelChoice:
        """Return the fallback model, unless the request's lists of candidates forbid it.

        Raises:
            HTTPException: 503, no model of the proxy is permitted.
        """
        fallback = self._options.fallback or self._options.alias
        candidates = [c for c, model in models.items() if model == fallback] or [fallback]
        if all(map(asked.permits, candidates)):
            return ModelChoice(fallback, "unrouted", why=why)
        for candidate, model in models.items():
            if asked.permits(candidate) and model != self._options.alias:
                return ModelChoice(model, "unrouted", why=why)
        raise _http_error(503, f"Not routed ({why}), and no model is permitted.")

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


def _http_error(status: int, message: str) -> Exception:
    """Return an error that the proxy answers with this status."""
    from fastapi import HTTPException  # of the proxy's environment

    error: Exception = HTTPException(status, {"error": message})
    return error


def _headers_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the caller's headers, names in lower case."""
    headers = _metadata(data.get("proxy_server_request"), "headers")
    return {str(name).lower(): str(value) for name, value in headers.items()}


def _take_overrides(data: dict[str, Any]) -> Any:
    """Remove what the caller put into metadata under our name, and return it."""
    taken = None
    for key in METADATA_KEYS:
        if NAMESPACE in (metadata := _metadata(data, key)):
            taken = metadata[NAMESPACE]
            data[key] = {k: v for k, v in metadata.items() if k != NAMESPACE}
    return taken


def _fields(overrides: Any) -> Mapping[str, Any]:
    """Return overrides as an object: some clients send metadata as strings, so JSON is read."""
    if isinstance(overrides, str) and overrides.strip():
        try:
            overrides = json.loads(overrides)
        except ValueError:
            overrides = [overrides]
    if overrides in (None, "", {}):
        return {}
    if not isinstance(overrides, Mapping):
        raise InvalidInputError(Violation(f"metadata {NAMESPACE}", "is not an object."))
    return overrides


def _own_metadata(data: Mapping[str, Any]) -> str:
    """Return the key of LiteLLM's own metadata; in some routes `metadata` goes to the provider."""
    return "litellm_metadata" if "litellm_metadata" in data else "metadata"


def _metadata(holder: Any, key: str) -> dict[str, Any]:
    """Return an object of a mapping or an object; empty if it is anything else."""
    found = holder.get(key) if isinstance(holder, Mapping) else getattr(holder, key, None)
    return found if isinstance(found, dict) else {}


router = RoutingCallback(options_from(os.environ))
