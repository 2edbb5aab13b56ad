"""A small synchronous client; errors are ModelsatClientError with the server's own sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import cast

import grpc

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
from engine.serving.convert import candidate_from, candidate_to, policy_to
from engine.serving.settings import MAX_MESSAGE_BYTES

DEFAULT_POLICY = Policy()


class ModelsatClientError(ModelsatError):
    """code: the gRPC status name. The message is the server's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Use it as a context manager, or call close(). timeout_s bounds every call."""

    def __init__(self, address: str = "127.0.0.1:50051", timeout_s: float = 10.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
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

    def route(self, text: str, policy: Policy = DEFAULT_POLICY) -> router_service_pb2.RouteResponse:
        """Choose a candidate for `text`."""
        check_text(text, MAX_MESSAGE_BYTES)
        request = router_service_pb2.RouteRequest(text=text, policy=policy_to(policy))
        with self._translated():
            answer: router_service_pb2.RouteResponse = self._router.Route(
                request, timeout=self._timeout_s
            )
        return answer

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
            if code == "UNAVAILABLE" and "connect" in message.lower():
                message = f"no server answers at {self._address}; `make serve` starts one."
            raise ModelsatClientError(code, message) from error


def _name(identifier: str) -> str:
    name = PREFIX + identifier.removeprefix(PREFIX)
    id_of(name)
    return name
