"""Translate the golden file's own words into requests, flags and headers, and answers back.

This module alone knows the names of proto fields, settings, headers and messages. If one of them
is renamed, this is the file to change; golden_decisions.json stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from engine.api import openai
from engine.pb import candidate_pb2 as candidate_pb
from engine.pb import external_processor_pb2 as extproc_pb
from engine.pb import router_service_pb2 as router_pb

Neutral = dict[str, Any]
PREFIX = "candidates/"
MODEL_HEADER = "x-selected-model"
OVERRIDE_PREFIX = "x-modelsat-"
METADATA = "modelsat"

POLICY = {
    "cost sensitivity": "cost_sensitivity",
    "target probability": "target_probability",
    "highest cost": "budget_usd",
    "only": "allowed_candidates",
    "never": "denied_candidates",
    "answer tokens": "expected_output_tokens",
    "answers": "ranking_size",
    "must read": "required_modalities",
    "must do": "required_features",
    "must be tagged": "required_tags",
    "any region of": "allowed_regions",
    "least window": "min_context_window",
    "highest input price": "max_input_usd_per_million",
    "highest output price": "max_output_usd_per_million",
    "abstain below": "abstain_below_probability",
    "abstain above ood": "max_ood_score",
    "on abstention": "default_candidate",
}
CANDIDATE = {
    "shown as": "display_name",
    "window": "context_window",
    "input price": "input_usd_per_million",
    "output price": "output_usd_per_million",
    "mean answer": "mean_output_tokens",
    "reads": "modalities",
    "does": "features",
    "tagged": "tags",
    "regions": "regions",
}
# Of ext_proc: the same words in a request header (after OVERRIDE_PREFIX) and in metadata.
OVERRIDES = {
    "cost sensitivity": "cost_sensitivity",
    "target probability": "target_probability",
    "highest cost": "budget_usd",
    "only": "allowed_candidates",
    "never": "denied_candidates",
    "session": "session",
}
FLAGS = {
    "device": "--device",
    "threads": "--inference-threads",
    "fallback": "--fallback",
    "cache MB": "--score-cache-mb",
    "waiting": "--max-queue-size",
    "default": "--default-candidate",
    "margin": "--switching-margin",
    "ext_proc": "--extproc-address",
    "ext_proc ms": "--extproc-timeout-ms",
    "ext_proc aliases": "--extproc-model-alias",
}
ROLES = {
    "system": router_pb.ROLE_SYSTEM,
    "user": router_pb.ROLE_USER,
    "assistant": router_pb.ROLE_ASSISTANT,
    "tool": router_pb.ROLE_TOOL,
}
KINDS = {
    router_pb.DECISION_KIND_RANKED: "scored",
    router_pb.DECISION_KIND_SESSION_AFFINITY: "session",
    router_pb.DECISION_KIND_DEFAULTED: "abstained",
    router_pb.DECISION_KIND_FALLBACK: "fallback",
}
# In metadata of ext_proc kinds are words.
KIND_WORDS = {
    "ranked": "scored",
    "session_affinity": "session",
    "defaulted": "abstained",
    "fallback": "fallback",
}
# Of a constraint's sentence: the first pattern that is found in it names the constraint.
CONSTRAINTS = (
    ("only", r"not among the allowed"),
    ("never", r"among the denied"),
    ("window needed", r"the request needs \d+"),
    ("window unknown", r"context window unknown"),
    ("least window", r"context window is \d+ tokens; policy"),
    ("must read", r"missing modalities"),
    ("must do", r"missing features"),
    ("must be tagged", r"missing tags"),
    ("region unknown", r"region unknown"),
    ("any region of", r"region is .*; policy requires"),
    ("input price unknown", r"input price unknown"),
    ("output price unknown", r"output price unknown"),
    ("highest input price", r"input price is"),
    ("highest output price", r"output price is"),
    ("cost unknown", r"price unknown; policy sets a budget"),
    ("highest cost", r"expected cost is"),
)


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Return the command-line flags of a server."""
    return [part for name, value in settings.items() for part in (FLAGS[name], str(value))]


def candidate(neutral: Neutral, tasks: list[str]) -> candidate_pb.Candidate:
    """Return the message of a candidate; its `accuracies` belong to `tasks` in order, or to those
    that it brings itself."""
    message = candidate_pb.Candidate(name=PREFIX + neutral["id"])
    for word, field in CANDIDATE.items():
        if word in neutral:
            _put(message, field, neutral[word])
    for task, accuracy in zip(neutral.get("tasks", tasks), neutral["accuracies"], strict=True):
        message.aptitude.add(task_keywords=task, accuracy=accuracy)
    return message


def route_request(neutral: Neutral) -> router_pb.RouteRequest:
    """Return the request for a text, for turns, or for the body of an OpenAI-shaped call."""
    request = router_pb.RouteRequest()
    if "text" in neutral:
        request.text = expand(neutral["text"])
    elif "openai" in neutral:
        _converse(request, openai.turns(expand(neutral["openai"])))
    elif "turns" in neutral:
        _converse(request, [(role, expand(text)) for role, text in neutral["turns"]])
    for word, value in neutral.get("policy", {}).items():
        _put(request.policy, POLICY[word], _named(word, value))
    if "session" in neutral:
        request.session.id = neutral["session"]["name"]
        if "margin" in neutral["session"]:
            request.session.switching_margin = neutral["session"]["margin"]
    request.dry_run = neutral.get("dry run", False)
    return request


def decision(response: router_pb.RouteResponse) -> Neutral:
    """Return what an answer of Route decides; its sentences and times are left out."""
    found: Neutral = {
        "selected": response.selected.removeprefix(PREFIX),
        "kind": KINDS[response.kind],
        "revision": response.revision,
        "input tokens": response.input_tokens,
        "truncated": response.truncated,
        "ood": round(response.ood_score, 6) if response.HasField("ood_score") else None,
        "ranking": [
            [
                each.candidate.removeprefix(PREFIX),
                round(each.probability, 6),
                _cost(each.expected_cost_usd) if each.HasField("expected_cost_usd") else None,
                round(each.utility, 6),
            ]
            for each in response.ranking
        ],
    }
    if response.excluded:
        found["excluded"] = _excluded((e.candidate, e.reason) for e in response.excluded)
    return found


def result(message: router_pb.RouteResult) -> Neutral:
    """Return one entry of BatchRoute or StreamRoute: a decision, or an error without details."""
    if message.HasField("error"):
        return {"error": message.error.reason}
    return decision(message.response)


def failure(error: grpc.RpcError) -> Neutral:
    """Return the error of a call: ErrorInfo's reason, and who was excluded by what."""
    status = rpc_status.from_call(error)
    if status is None:
        return {"error": error.code().name}
    info, precondition = error_details_pb2.ErrorInfo(), error_details_pb2.PreconditionFailure()
    status.details[0].Unpack(info)
    found: Neutral = {"error": info.reason}
    for detail in status.details[1:]:
        if detail.Unpack(precondition):
            record = ((v.subject, v.description) for v in precondition.violations)
            found["excluded"] = _excluded(record)
    return found


def http_request(neutral: Neutral) -> list[extproc_pb.ProcessingRequest]:
    """Return what Envoy sends for an HTTP request with a buffered body: its headers, its body."""
    first = extproc_pb.ProcessingRequest()
    first.protocol_config.request_body_mode = extproc_pb.BUFFERED
    headers = {":path": neutral.get("path", "/v1/chat/completions")}
    headers["content-type"] = "application/json"
    for word, value in neutral.get("headers", {}).items():
        headers[OVERRIDE_PREFIX + OVERRIDES[word].replace("_", "-")] = value
    for key, value in headers.items():
        first.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    record = {OVERRIDES[word]: value for word, value in neutral.get("metadata", {}).items()}
    if record:
        first.metadata_context.filter_metadata[METADATA].update(record)
    body = json.dumps(expand(neutral["body"]), ensure_ascii=False).encode()
    whole = {"body": body, "end_of_stream": True}
    return [first, extproc_pb.ProcessingRequest(request_body=whole)]


def http_decision(answers: list[extproc_pb.ProcessingResponse]) -> Neutral:
    """Return what Envoy is asked to do with the request."""
    last = answers[-1]
    if last.HasField("immediate_response"):
        refused = last.immediate_response
        code = json.loads(refused.body)["error"]["code"]
        return {"error": code.upper(), "http status": refused.status.code}
    record = last.dynamic_metadata[METADATA]
    common = last.request_body.response
    headers = {h.header.key: h.header.raw_value for h in common.header_mutation.set_headers}
    return {
        "selected": record["selected"].removeprefix(PREFIX),
        "kind": KIND_WORDS[record["kind"]],
        "revision": int(record["revision"]),
        "probability": round(record["probability"], 6),
        "model header": headers[MODEL_HEADER].decode(),
        "model in body": json.loads(common.body_mutation.body)["model"],
    }


def expand(value: Any) -> Any:
    """Return `value` with {"repeat": text, "times": n, "end": text} written out, wherever it is."""
    if isinstance(value, list):
        return [expand(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "repeat" in value:
        return value["repeat"] * value["times"] + value.get("end", "")
    return {key: expand(each) for key, each in value.items()}


def _converse(request: router_pb.RouteRequest, turns: Iterable[tuple[str, Any]]) -> None:
    request.conversation.SetInParent()
    for role, text in turns:
        texts = [text] if isinstance(text, str) else text
        request.conversation.messages.add(role=ROLES[role], text_parts=texts)


def _named(word: str, value: Any) -> Any:
    """Resource names where the policy names candidates."""
    if word in ("only", "never"):
        return [PREFIX + identifier for identifier in value]
    return PREFIX + value if word == "on abstention" else value


def _put(message: Any, field: str, value: Any) -> None:
    if isinstance(value, list):
        getattr(message, field).extend(value)
    else:
        setattr(message, field, value)


def _cost(usd: float) -> float:
    return float(f"{usd:.9g}")


def _excluded(record: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.removeprefix(PREFIX): _constraint(sentence) for name, sentence in record}


def _constraint(sentence: str) -> str:
    for code, pattern in CONSTRAINTS:
        if re.search(pattern, sentence):
            return code
    raise ValueError(f"no constraint is known for {sentence!r}; add its wording to CONSTRAINTS")
