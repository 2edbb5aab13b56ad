"""Settings of the LiteLLM callback, from environment variables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.api.errors import InvalidInputError, Violation
from engine.api.overrides import NAMES, OVERRIDE_PREFIX, policy_and_session
from engine.api.policy import OBJECTIVES, Policy
from engine.client import Credentials
from engine.client.channel import DEFAULT_SERVER, INSECURE, TOKEN_VARIABLE

ENVIRONMENT = "LITELLM_MODELSAT_"  # MODELSAT_ is the server's
POLICY = tuple(name for name in NAMES if name != "session")
PLAIN = ("server", "alias", "fallback", "tls_ca", "tls_cert", "tls_key")
NUMBERS = {"timeout_ms": (200.0, 1.0), "fallbacks": (2.0, 0.0)}  # name -> (default, minimum)
MAX_FALLBACKS = 5  # LiteLLM tries no more


@dataclass(frozen=True)
class CallbackOptions:
    """Settings of the callback.

    Attributes:
        server: Address of the modelsat server.
        alias: Model name of the requests to route.
        fallback: Model to use if there is no choice. Empty keeps the alias, which LiteLLM then
            looks up in its own configuration.
        timeout_s: Seconds to wait for a choice.
        fallbacks: Number of next-ranked models that LiteLLM tries if the chosen one fails.
        policy: What requests leave unset: header -> text, see engine.api.overrides.
        credentials: TLS files and token.
    """

    server: str = DEFAULT_SERVER
    alias: str = "auto"
    fallback: str = ""
    timeout_s: float = 0.2
    fallbacks: int = 2
    policy: Mapping[str, str] = field(default_factory=dict)
    credentials: Credentials = INSECURE


def options_from(environ: Mapping[str, str]) -> CallbackOptions:
    """Read the variables LITELLM_MODELSAT_* and MODELSAT_TOKEN.

    Raises one InvalidInputError that lists every wrong value.
    """
    given = {
        name.removeprefix(ENVIRONMENT).lower(): value.strip()
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT) and value.strip()
    }
    known = (*PLAIN, *NUMBERS, *POLICY)
    expected = ", ".join(name.upper() for name in known)
    problems = [
        Violation(_variable(name), f"is not a setting; expected one of {expected}.")
        for name in given
        if name not in known
    ]
    numbers = {name: _number(name, given, problems) for name in NUMBERS}
    policy = _policy(given, problems)
    if problems:
        raise InvalidInputError(*problems)
    return CallbackOptions(
        server=given.get("server", DEFAULT_SERVER),
        alias=given.get("alias", "auto"),
        fallback=given.get("fallback", ""),
        timeout_s=numbers["timeout_ms"] / 1000,
        fallbacks=min(MAX_FALLBACKS, int(numbers["fallbacks"])),
        policy=policy,
        credentials=Credentials(
            tls_ca=given.get("tls_ca"),
            tls_cert=given.get("tls_cert"),
            tls_key=given.get("tls_key"),
            token=environ.get(TOKEN_VARIABLE, "").strip(),
        ),
    )


def _number(name: str, given: Mapping[str, str], problems: list[Violation]) -> float:
    default, minimum = NUMBERS[name]
    text = given.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not minimum <= value < math.inf:
        problem = f"is {text!r}; expected a number of at least {minimum:g}."
        problems.append(Violation(_variable(name), problem))
        return default
    return value


def _policy(given: Mapping[str, str], problems: list[Violation]) -> dict[str, str]:
    """Return the policy as the headers that would say the same."""
    policy = {_header(name): given[name] for name in POLICY if name in given}
    variables = {_header(name): _variable(name) for name in POLICY}
    for name in policy:
        try:  # each by itself, so that every wrong value is listed
            read, _ = policy_and_session({}, {name: policy[name]})
            if expected := _expected(read):
                problem = f"is {policy[name]}; expected {expected}."
                problems.append(Violation(variables[name], problem))
        except InvalidInputError as error:
            problems += [Violation(variables[name], v.description) for v in error.violations]
    if sum(_header(name) in policy for name in OBJECTIVES) > 1:
        problem = "must not be set together with another objective."
        problems += [Violation(_variable(n), problem) for n in OBJECTIVES if _header(n) in policy]
    return policy


def _expected(policy: Policy) -> str:
    """Say which numbers the one number of a policy should have been of; "" if it is one of them."""
    value, is_share = policy.value, policy.objective == "target_probability"
    if policy.objective == "willingness_to_pay_usd":
        return "" if value > 0 else "US dollars per success, above 0"
    if is_share and not 0 <= value <= 1:
        return "a number in [0, 1]"
    numbers = (value, policy.confidence or 0.0, policy.max_latency_ms or 0.0)
    return "" if all(0 <= n < math.inf for n in numbers) else "a number of at least 0"


def _header(name: str) -> str:
    return OVERRIDE_PREFIX + name.replace("_", "-")


def _variable(name: str) -> str:
    return ENVIRONMENT + name.upper()
