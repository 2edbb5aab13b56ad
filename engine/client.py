"""A small synchronous client; errors are ModelsatClientError with the server's own sentence."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import cast

import grpc

from engine.channel import DEFAULT_SERVER, PLAIN, Access, access_from, open_channel
from engine.contract.candidate import PREFIX, Candidate, id_of
from engine.contract.errors import ModelsatError
from engine.contract.prompt import check_text
from engine.pb import (
    candidate_service_pb2,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from engine.policy import Policy
from engine.router import Session
from engine.serving.convert import candidate_from, candidate_to, policy_to
from engine.serving.settings import MAX_MESSAGE_BYTES

DEFAULT_POLICY = Policy()
MAX_BATCH = 256  # requests of a BatchRoute


class ModelsatClientError(ModelsatError):
    """code: the gRPC status name. The message is the server's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Use it as a context manager, or call close(). timeout_s bounds every call.

    Raises InvalidInputError where a file that `access` names cannot be read.
    """

    def __init__(
        self, address: str = DEFAULT_SERVER, timeout_s: float = 10.0, access: Access = PLAIN
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = open_channel(
            address, access, options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        )
        self._router = router_service_pb2_grpc.RouterServiceStub(self._channel)
        self._candidates = candidate_service_pb2_grpc.CandidateServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def route(
        self,
        text: str,
        policy: Policy = DEFAULT_POLICY,
        *,
        session: Session | None = None,
        dry_run: bool = False,
    ) -> router_service_pb2.RouteResponse:
        """Choose a candidate for `text`."""
        request = _request(text, policy, session, dry_run)
        with self._translated():
            answer: router_service_pb2.RouteResponse = self._router.Route(
                request, timeout=self._timeout_s
            )
        return answer

    def route_many(
        self, texts: Sequence[str], policy: Policy = DEFAULT_POLICY, *, dry_run: bool = False
    ) -> list[router_service_pb2.RouteResult]:
        """Choose for each text, in their order; each result holds a response or an error."""
        requests = [_request(text, policy, None, dry_run) for text in texts]
        results: list[router_service_pb2.RouteResult] = []
        for first in range(0, len(requests), MAX_BATCH):
            batch = router_service_pb2.BatchRouteRequest(
                requests=requests[first : first + MAX_BATCH]
            )
            with self._translated():
                results += self._router.BatchRoute(batch, timeout=self._timeout_s).results
        return results

    def record_outcome(
        self, decision_id: str, candidate: str, score: float, *, text: str = "", category: str = ""
    ) -> bool:
        """Keep how well `candidate` (id or resource name) did, in [0, 1]; False where the same was
        there already. With `text`, the instruction, it can train too."""
        request = router_service_pb2.RecordOutcomeRequest(
            decision_id=decision_id,
            candidate=_name(candidate),
            score=score,
            text=text,
            category=category,
        )
        with self._translated():
            answer = self._router.RecordOutcome(request, timeout=self._timeout_s)
        return bool(answer.recorded)

    def server_info(self) -> router_service_pb2.GetServerInfoResponse:
        """What is served and by what."""
        with self._translated():
            request = router_service_pb2.GetServerInfoRequest()
            answer: router_service_pb2.GetServerInfoResponse = self._router.GetServerInfo(
                request, timeout=self._timeout_s
            )
        return answer

    def candidates(self) -> list[Candidate]:
        """All candidates, in order of their ids."""
        found: list[Candidate] = []
        token = ""
        while True:
            request = candidate_service_pb2.ListCandidatesRequest(page_token=token)
            with self._translated():
                page = self._candidates.ListCandidates(request, timeout=self._timeout_s)
            found += [candidate_from(c, "candidates") for c in page.candidates]
            token = page.next_page_token
            if not token:
                return found

    def candidate(self, identifier: str) -> Candidate:
        """One candidate, by id or resource name."""
        request = candidate_service_pb2.GetCandidateRequest(name=_name(identifier))
        with self._translated():
            message = self._candidates.GetCandidate(request, timeout=self._timeout_s)
        return candidate_from(message, "candidate")

    def add(self, candidate: Candidate) -> Candidate:
        """Register a new candidate."""
        request = candidate_service_pb2.CreateCandidateRequest(candidate=candidate_to(candidate))
        with self._translated():
            message = self._candidates.CreateCandidate(request, timeout=self._timeout_s)
        return candidate_from(message, "candidate")

    def remove(self, identifier: str) -> None:
        """Remove a candidate, by id or resource name."""
        request = candidate_service_pb2.DeleteCandidateRequest(name=_name(identifier))
        with self._translated():
            self._candidates.DeleteCandidate(request, timeout=self._timeout_s)

    def replace(self, candidates: Sequence[Candidate]) -> int:
        """Make `candidates` the whole table; returns the new revision."""
        request = candidate_service_pb2.BatchReplaceCandidatesRequest(
            candidates=[candidate_to(c) for c in candidates]
        )
        with self._translated():
            answer = self._candidates.BatchReplaceCandidates(request, timeout=self._timeout_s)
        return int(answer.revision)

    def revisions(self) -> list[candidate_service_pb2.Revision]:
        """The states of the table that are kept, newest first."""
        found: list[candidate_service_pb2.Revision] = []
        token = ""
        while True:
            request = candidate_service_pb2.ListRevisionsRequest(page_token=token)
            with self._translated():
                page = self._candidates.ListRevisions(request, timeout=self._timeout_s)
            found += page.revisions
            token = page.next_page_token
            if not token:
                return found

    def rollback(
        self, revision: int, *, validate_only: bool = False
    ) -> candidate_service_pb2.Revision:
        """Make the table of `revision` the newest one; returns the new revision."""
        request = candidate_service_pb2.RollbackRevisionRequest(
            revision=revision, validate_only=validate_only
        )
        with self._translated():
            answer = self._candidates.RollbackRevision(request, timeout=self._timeout_s)
        made: candidate_service_pb2.Revision = answer.revision
        return made

    def watch(
        self, known_revision: int = 0
    ) -> Iterator[candidate_service_pb2.WatchCandidatesResponse]:
        """Every change of the table as it comes, without a time limit, until the server stops."""
        request = candidate_service_pb2.WatchCandidatesRequest(known_revision=known_revision)
        call = self._candidates.WatchCandidates(request)
        try:
            with self._translated():
                yield from call
        finally:
            call.cancel()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)  # every RpcError of a channel is one
            code = call.code().name
            message = call.details() or code
            if code == "UNAVAILABLE":
                message = _unavailable(message, self._address)
            raise ModelsatClientError(code, message) from error


def _unavailable(message: str, address: str) -> str:
    found = message.lower()
    if "handshake" in found or "socket closed" in found:
        return (
            f"{address} and this client do not agree on TLS; --tls-ca names the authority of the"
            f" server's certificate, --tls-cert and --tls-key a certificate of your own ({message})"
        )
    if "connect" in found:
        return f"no server answers at {address}; `make serve` starts one."
    return message


def connect(parsed: argparse.Namespace) -> Client:
    """The client that channel.add_arguments' flags and MODELSAT_TOKEN ask for."""
    return Client(parsed.server, access=access_from(parsed, os.environ))


def _name(identifier: str) -> str:
    name = PREFIX + identifier.removeprefix(PREFIX)
    id_of(name)
    return name


def _request(
    text: str, policy: Policy, session: Session | None, dry_run: bool
) -> router_service_pb2.RouteRequest:
    check_text(text, MAX_MESSAGE_BYTES)
    request = router_service_pb2.RouteRequest(text=text, policy=policy_to(policy), dry_run=dry_run)
    if session is not None:
        request.session.id = session.name
        if session.margin is not None:
            request.session.switching_margin = session.margin
    return request
