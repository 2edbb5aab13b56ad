"""The synchronous client; errors are ModelsatClientError with the server's own sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from engine.api.candidate import Candidate
from engine.api.policy import Policy, Session
from engine.api.proto import candidate_from, candidate_to
from engine.client.channel import DEFAULT_SERVER, PLAIN, Access, open_channel
from engine.client.requests import (
    DEFAULT_POLICY,
    Instruction,
    ModelsatClientError,
    Turn,
    batches,
    outcome_request,
    replace_request,
    resource_name,
    route_request,
    translated,
)
from engine.pb import (
    candidate_service_pb2,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)

__all__ = ["Access", "Client", "ModelsatClientError", "Policy", "Session", "Turn"]


class Client:
    """Use it as a context manager, or call close().

    address: HOST:PORT or any target of gRPC; calls are spread over its addresses. timeout_s bounds
    every call, with all its retries. retries: up to 3, of calls that may be sent twice, where the
    server was away or refused for want of room; it may say when.

    Raises InvalidInputError where a file that `access` names cannot be read.
    """

    def __init__(
        self,
        address: str = DEFAULT_SERVER,
        timeout_s: float = 10.0,
        access: Access = PLAIN,
        *,
        retries: bool = True,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = open_channel(address, access, retries=retries)
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
        instruction: Instruction,
        policy: Policy = DEFAULT_POLICY,
        *,
        session: Session | None = None,
        dry_run: bool = False,
    ) -> router_service_pb2.RouteResponse:
        """Choose a candidate for a text, or for the last user turn of a conversation."""
        request = route_request(instruction, policy, session, dry_run)
        answer: router_service_pb2.RouteResponse = self._call(self._router.Route, request)
        return answer

    def route_many(
        self,
        instructions: Sequence[Instruction],
        policy: Policy = DEFAULT_POLICY,
        *,
        dry_run: bool = False,
    ) -> list[router_service_pb2.RouteResult]:
        """Choose for each one, in their order; each result holds a response or an error."""
        results: list[router_service_pb2.RouteResult] = []
        for request in batches(instructions, policy, dry_run):
            results += self._call(self._router.BatchRoute, request).results
        return results

    def record_outcome(
        self, decision_id: str, candidate: str, score: float, *, text: str = "", category: str = ""
    ) -> bool:
        """Keep how well `candidate` (id or resource name) did, in [0, 1]; False where the same was
        there already. With `text`, the instruction, it can train too."""
        request = outcome_request(decision_id, candidate, score, text, category)
        return bool(self._call(self._router.RecordOutcome, request).recorded)

    def server_info(self) -> router_service_pb2.GetServerInfoResponse:
        """What is served and by what."""
        request = router_service_pb2.GetServerInfoRequest()
        answer: router_service_pb2.GetServerInfoResponse = self._call(
            self._router.GetServerInfo, request
        )
        return answer

    def candidates(self) -> list[Candidate]:
        """All candidates, in order of their ids."""
        found: list[Candidate] = []
        token = ""
        while True:
            request = candidate_service_pb2.ListCandidatesRequest(page_token=token)
            page = self._call(self._candidates.ListCandidates, request)
            found += [candidate_from(c, "candidates") for c in page.candidates]
            token = page.next_page_token
            if not token:
                return found

    def candidate(self, identifier: str) -> Candidate:
        """One candidate, by id or resource name."""
        request = candidate_service_pb2.GetCandidateRequest(name=resource_name(identifier))
        message = self._call(self._candidates.GetCandidate, request)
        return candidate_from(message, "candidate")

    def add(self, candidate: Candidate) -> Candidate:
        """Register a new candidate."""
        request = candidate_service_pb2.CreateCandidateRequest(candidate=candidate_to(candidate))
        message = self._call(self._candidates.CreateCandidate, request)
        return candidate_from(message, "candidate")

    def remove(self, identifier: str) -> None:
        """Remove a candidate, by id or resource name."""
        request = candidate_service_pb2.DeleteCandidateRequest(name=resource_name(identifier))
        self._call(self._candidates.DeleteCandidate, request)

    def replace(self, candidates: Sequence[Candidate]) -> int:
        """Make `candidates` the whole table; returns the new revision."""
        answer = self._call(self._candidates.BatchReplaceCandidates, replace_request(candidates))
        return int(answer.revision)

    def revisions(self) -> list[candidate_service_pb2.Revision]:
        """The states of the table that are kept, newest first."""
        found: list[candidate_service_pb2.Revision] = []
        token = ""
        while True:
            request = candidate_service_pb2.ListRevisionsRequest(page_token=token)
            page = self._call(self._candidates.ListRevisions, request)
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
        answer = self._call(self._candidates.RollbackRevision, request)
        made: candidate_service_pb2.Revision = answer.revision
        return made

    def watch(
        self, last_seen_revision: int = 0
    ) -> Iterator[candidate_service_pb2.WatchCandidatesResponse]:
        """Every change of the table as it comes, without a time limit, until the server stops."""
        request = candidate_service_pb2.WatchCandidatesRequest(
            last_seen_revision=last_seen_revision
        )
        call = self._candidates.WatchCandidates(request)
        try:
            with translated(self._address):
                yield from call
        finally:
            call.cancel()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        with translated(self._address):
            return method(request, timeout=self._timeout_s)
