"""LiteLLM's proxy asks modelsat which of its models answers a request for the alias `auto`.

In LiteLLM's config.yaml, with modelsat installed beside it:

    litellm_settings:
      callbacks: engine.integrations.litellm.router

The environment says where the router is (ENVIRONMENT below). Whatever fails, the request goes on to
the fallback model. Candidates and LiteLLM's models go together by name: the choice is the best
ranked candidate that LiteLLM has a model_name of.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from engine.api.candidate import PREFIX
from engine.api.errors import InvalidInputError, Violation
from engine.api.openai import turns
from engine.api.policy import Policy
from engine.client.aio import AsyncClient
from engine.client.channel import DEFAULT_SERVER, PLAIN, TOKEN, Access
from engine.client.requests import ModelsatClientError, Turn
from engine.pb.router_service_pb2 import DecisionKind, RouteResponse

ENVIRONMENT = "LITELLM_MODELSAT_"  # MODELSAT_ is the server's
KEY = "modelsat"  # of the choice in the request's metadata
MODEL_HEADER, PREFIX_HEADER = "x-selected-model", "x-modelsat-"
# What LiteLLM calls chat completions, completions, responses and Anthropic's messages.
ROUTED = ("acompletion", "atext_completion", "aresponses", "anthropic_messages")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """alias: the model that asks for a choice. fallback: the model where there is none; empty
    leaves the alias, for LiteLLM to answer from its own entry of that name. timeout_s: of the
    router's answer. cost_sensitivity: see Policy in the proto."""

    server: str = DEFAULT_SERVER
    alias: str = "auto"
    fallback: str = ""
    timeout_s: float = 0.2
    cost_sensitivity: float = 0.0
    access: Access = PLAIN


@dataclass(frozen=True)
class Choice:
    """model: of LiteLLM. kind: "ranked", "session_affinity", "defaulted", "fallback" as in
    DecisionKind, or
    "unrouted" where the router gave no answer; why says then what it gave. The rest is empty then.
    """

    model: str
    kind: str
    decision_id: str = ""
    probability: float | None = None
    why: str = ""

    def headers(self) -> dict[str, str]:
        """Of the reply to the caller."""
        more = {"kind": self.kind, "decision-id": self.decision_id, "why": self.why}
        return {MODEL_HEADER: self.model} | {PREFIX_HEADER + k: v for k, v in more.items() if v}


def options_from(environ: Mapping[str, str]) -> Options:
    """Raises one InvalidInputError that lists every wrong value."""
    given = {
        k.removeprefix(ENVIRONMENT).lower(): v.strip()
        for k, v in environ.items()
        if k.startswith(ENVIRONMENT) and v.strip()
    }
    problems: list[Violation] = []

    def number(name: str, default: float, low: float) -> float:
        text = given.pop(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            wrong = f"is {text!r}; expected a number of at least {low:g}."
            problems.append(Violation(ENVIRONMENT + name.upper(), wrong))
        return value

    ca, cert, key = (Path(given.pop(name, "")) for name in ("tls_ca", "tls_cert", "tls_key"))
    options = Options(
        server=given.pop("server", DEFAULT_SERVER),
        alias=given.pop("alias", "auto"),
        fallback=given.pop("fallback", ""),
        timeout_s=number("timeout_ms", 200, 1) / 1000,
        cost_sensitivity=number("cost_sensitivity", 0, 0),
        access=Access(ca, cert, key, environ.get(TOKEN, "").strip()),
    )
    known = "SERVER, ALIAS, FALLBACK, TIMEOUT_MS, COST_SENSITIVITY, TLS_CA, TLS_CERT, TLS_KEY"
    problems += [
        Violation(ENVIRONMENT + name.upper(), f"is no setting; there are {known}.")
        for name in given
    ]
    if problems:
        raise InvalidInputError(*problems)
    return options


def pick(answer: RouteResponse, models: Collection[str]) -> Choice | None:
    """The best ranked candidate that is in `models`; None where none is."""
    for ranked in answer.ranking:  # whatever was selected stands first
        model = ranked.candidate.removeprefix(PREFIX)
        if model in models:
            kind = DecisionKind.Name(answer.kind).removeprefix("DECISION_KIND_").lower()
            return Choice(model, kind, answer.decision_id, round(ranked.probability, 4))
    return None


def _models() -> Collection[str]:
    """model_name of every model that the proxy has now."""
    from litellm.proxy import proxy_server  # late: it is what loads this module

    router = proxy_server.llm_router
    return router.model_names if router is not None else ()


class Router(CustomLogger):  # type: ignore[misc]  # litellm is not installed where this is checked
    """The callback. The channel opens with the first request, in the process that serves it."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options
        self._policy = Policy(value=options.cost_sensitivity)
        self._client: AsyncClient | None = None
        self._trouble = ""

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Set the model of a request for the alias."""
        key = _metadata_of(data)
        _metadata(data, key).pop(KEY, None)  # a caller's own must not become our header
        if data.get("model") == self._options.alias and call_type in ROUTED:
            choice = await self._choose(data)
            data["model"] = choice.model
            data[key] = {**_metadata(data, key), KEY: asdict(choice)}
        return data

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any, **_: Any
    ) -> dict[str, str] | None:
        """The choice, in headers of the reply; of a stream too."""
        chosen = _metadata(data, _metadata_of(data)).get(KEY)
        return Choice(**chosen).headers() if chosen else None

    async def _choose(self, data: Mapping[str, Any]) -> Choice:
        try:
            if self._client is None:
                o = self._options
                self._client = AsyncClient(o.server, o.timeout_s, o.access, retries=False)
            said = [Turn(role, text) for role, text in turns(data)]
            choice = pick(await self._client.route(said, self._policy), _models())
            why = "" if choice else "no candidate is a model of this proxy"
        except ModelsatClientError as error:
            choice, why = None, error.code
        except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
            choice, why = None, type(error).__name__
        self._tell(why)
        return choice or Choice(self._options.fallback or self._options.alias, "unrouted", why=why)

    def _tell(self, trouble: str) -> None:
        """Log a change; the text of a request and the router's words about it stay out."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble:
            log.warning("modelsat does not choose (%s); requests go to the fallback", trouble)
        else:
            log.warning("modelsat chooses again")


def _metadata_of(data: Mapping[str, Any]) -> str:
    """Where LiteLLM keeps what is not for the provider; `metadata` is the provider's in some
    routes."""
    return "litellm_metadata" if "litellm_metadata" in data else "metadata"


def _metadata(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Empty where the caller sent what is no object."""
    found = data.get(key)
    return found if isinstance(found, dict) else {}


router = Router(options_from(os.environ))
