"""The client for threads."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from engine.api.policy import Policy, Session
from engine.api.usage import Usage
from engine.client.adaptation import AdaptationCalls
from engine.client.candidates import CandidateCalls
from engine.client.channel import DEFAULT_SERVER, INSECURE, Credentials, open_channel
from engine.client.errors import translate_errors
from engine.client.requests import (
    DEFAULT_POLICY,
    NO_USAGE,
    Instruction,
    Outcome,
    batches,
    comparison_request,
    outcome_request,
    route_request,
    stream_request,
    token_in,
)
from engine.client.results import (
    RouteDecision,
    RouteResult,
    ServerInfo,
    decision_from,
    result_from,
    server_info_from,
)
from engine.pb import (
    adaptation_service_pb2_grpc,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)


class Client(CandidateCalls, AdaptationCalls):
    """Client of a modelsat server. It can be shared by threads.

    Use it in a `with` block or call `close`. Every method raises ModelsatClientError if the call
    fails and InvalidInputError if a value cannot be sent; both are ModelsatError.

    Args:
        address: HOST:PORT, or any gRPC target ("dns:///router:50051",
            "ipv4:10.0.0.1:50051,10.0.0.2:50051"); calls go round robin over its addresses.
        timeout_s: Seconds that one call may take with all its retries.
        credentials: TLS files and token; plain text without a token by default.
        retries: Repeat calls that may be sent twice up to 3 times if the server is away or
            overloaded, after the delay that it names.
        hedge_address: A second server. It is asked as well if `route` has no answer after
            `hedge_after_s` seconds; the first answer counts and the other call is cancelled.
        hedge_after_s: Set it near the 99th percentile of your latency.

    Attributes:
        revision_token: Identity of the revision that the last change of this client made, "" before
            the first one. Pass it as `min_revision_token` to read what was written, on any server.

    Raises:
        InvalidInputError: a file of `credentials` cannot be read.

    Example:
        with Client("127.0.0.1:50051", timeout_s=2) as client:
            print(client.route("If 3x + 7 = 22, what is x?").selected)
    """

    def __init__(
        self,
        address: str = DEFAULT_SERVER,
        timeout_s: float = 10.0,
        credentials: Credentials = INSECURE,
        *,
        retries: bool = True,
        hedge_address: str = "",
        hedge_after_s: float = 0.1,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self.revision_token = ""
        self._metadata = credentials.metadata()
        self._channel = open_channel(address, credentials, retries=retries)
        self._router = router_service_pb2_grpc.RouterServiceStub(self._channel)
        self._candidates = candidate_service_pb2_grpc.CandidateServiceStub(self._channel)
        self._adaptations = adaptation_service_pb2_grpc.AdaptationServiceStub(self._channel)
        self._hedge_address = hedge_address
        self._hedge_after_s = hedge_after_s
        # A channel of its own: within one, round robin may pick the same server again.
        self._hedge_channel: grpc.Channel | None = None
        if hedge_address:
            self._hedge_channel = open_channel(hedge_address, credentials, retries=retries)
            self._hedge_router = router_service_pb2_grpc.RouterServiceStub(self._hedge_channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and cancel calls in flight."""
        self._channel.close()
        if self._hedge_channel is not None:
            self._hedge_channel.close()

    def route(
        self,
        instruction: Instruction,
        policy: Policy = DEFAULT_POLICY,
        *,
        session: Session | None = None,
        dry_run: bool = False,
        min_revision_token: str = "",
    ) -> RouteDecision:
        """Choose the candidate that should answer an instruction.

        Args:
            instruction: A text, or the turns of a conversation, of which the last user turn
                decides.
            policy: Objective and constraints; by default the highest probability of a good answer.
            session: Requests of one session stick to one candidate.
            dry_run: Decide as usual, but record nothing: no session, audit or metric.
            min_revision_token: Wait for this revision of the candidates, or a later one;
                `revision_token` of this client after a change, or of an answer.

        Example:
            policy = Policy("willingness_to_pay_usd", 0.1)
            decision = client.route("If 3x + 7 = 22, what is x?", policy)
            print(decision.selected, decision.ranking[0].probability, decision.reason)
        """
        request = route_request(instruction, policy, session, dry_run, min_revision_token)
        if self._hedge_channel is None:
            return decision_from(self._call(self._router.Route, request))
        return decision_from(self._route_hedged(request))

    def route_many(
        self,
        instructions: Sequence[Instruction],
        policy: Policy = DEFAULT_POLICY,
        *,
        dry_run: bool = False,
    ) -> list[RouteResult]:
        """Choose a candidate for each of several instructions, in as few calls as possible.

        Returns:
            For each instruction, in order, a decision, or the error that `route` would raise.

        Example:
            for result in client.route_many(["What is 2 + 2?", "Who wrote Faust?"]):
                print(result.selected if isinstance(result, RouteDecision) else result.code)
        """
        return [
            result_from(result)
            for request in batches(instructions, policy, dry_run)
            for result in self._call(self._router.BatchRoute, request).results
        ]

    def route_stream(
        self,
        instructions: Iterable[Instruction | Outcome],
        policy: Policy = DEFAULT_POLICY,
        *,
        dry_run: bool = False,
    ) -> Iterator[tuple[int, RouteResult]]:
        """Route instructions while they are produced, over one call without a time limit.

        `instructions` is read in a thread of gRPC. An error that it raises, and that of an
        instruction that cannot be sent, is raised here after the results of those before it.

        Outcomes among the instructions are recorded; of those, only errors are yielded.

        Yields:
            (position of the instruction, its decision or error), as each one is ready.

        Example:
            for position, result in client.route_stream(["What is 2 + 2?", "Who wrote Faust?"]):
                print(position, result)
        """
        errors: list[Exception] = []

        def requests() -> Iterator[router_service_pb2.StreamRouteRequest]:
            try:
                for i, instruction in enumerate(instructions):
                    yield stream_request(i, instruction, policy, dry_run)
            except Exception as error:  # noqa: BLE001 - raised below; gRPC would swallow it
                errors.append(error)

        for response in self._stream(self._router.StreamRoute, requests()):
            if not response.HasField("recorded"):
                yield int(response.id), result_from(response.result)
        if errors:
            raise errors[0]

    def record_outcome(
        self,
        decision_id: str,
        candidate: str,
        score: float,
        *,
        text: str = "",
        category: str = "",
        usage: Usage | None = None,
        store_text: bool = True,
    ) -> bool:
        """Record how well a candidate answered, so that the server learns from it.

        Args:
            decision_id: Names the decision, see `RouteDecision.decision_id`; "" if `text` was not
                routed by this server.
            candidate: ID of the candidate that answered; it need not be the selected one.
            score: Quality of the answer in [0, 1]; 1 is right.
            text: The instruction; without a stored one the outcome cannot train.
            category: Your own label for this kind of instruction, at most 200 characters.
            usage: What the call of the candidate used.
            store_text: Whether the text may be stored; if not, the server only scores it.

        Returns:
            False if the same outcome was recorded before.

        Example:
            client.record_outcome(decision.decision_id, decision.selected, 1.0)
        """
        request = outcome_request(decision_id, candidate, score, text, category, usage, store_text)
        return bool(self._call(self._router.RecordOutcome, request).recorded)

    def record_comparison(
        self,
        scores: Mapping[str, float],
        *,
        decision_id: str = "",
        text: str = "",
        store_text: bool = False,
        category: str = "",
        grader: str = "",
        disagreement: float | None = None,
        usage: Mapping[str, Usage] = NO_USAGE,
    ) -> int:
        """Record how well several candidates answered the same instruction.

        The server learns more from it than from outcomes of the selected candidate alone.

        Args:
            scores: Candidate ID -> quality of its answer in [0, 1]; at least two.
            decision_id: A decision on the instruction. Exactly one of it and `text` is given.
            text: The instruction; the server scores it.
            store_text: Whether the text may be stored, to train with.
            category: Your own label for this kind of instruction, at most 200 characters.
            grader: Who graded, such as "numeric"; at most 200 characters.
            disagreement: How far graders disagree, in [0, 1]; None if one graded.
            usage: Candidate ID -> what its call used.

        Returns:
            The number of outcomes that were not recorded before.

        Example:
            scores = {ranked.candidate: 1.0 for ranked in decision.ranking[:2]}
            client.record_comparison(scores, decision_id=decision.decision_id)
        """
        request = comparison_request(
            scores, decision_id, text, store_text, category, grader, disagreement, usage
        )
        return int(self._call(self._router.RecordComparison, request).recorded)

    def server_info(self) -> ServerInfo:
        """Return version, backend and limits of the server.

        Example:
            print(client.server_info().version)
        """
        request = router_service_pb2.GetServerInfoRequest()
        return server_info_from(self._call(self._router.GetServerInfo, request))

    def _call(self, method: Any, request: Any) -> Any:
        with translate_errors(self._address):
            response, call = method.with_call(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        self.revision_token = token_in(call.trailing_metadata()) or self.revision_token
        return response

    def _pages(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        while True:
            page = self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _stream(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        with translate_errors(self._address):
            call = method(request, metadata=self._metadata)
        try:
            with translate_errors(self._address):
                yield from call
        finally:
            call.cancel()

    def _route_hedged(
        self, request: router_service_pb2.RouteRequest
    ) -> router_service_pb2.RouteResponse:
        """Return the first answer of both servers, or raise what the last one to fail raised.

        gRPC's own hedgingPolicy is not in its C core, on which Python runs.
        """
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def start(
            stub: router_service_pb2_grpc.RouterServiceStub, address: str, timeout_s: float
        ) -> Any:
            with translate_errors(address):
                call = stub.Route.future(request, timeout=timeout_s, metadata=self._metadata)
            call.add_done_callback(lambda _: finished.put((call, address)))
            return call

        calls = [start(self._router, self._address, self._timeout_s)]
        try:
            try:
                call, address = finished.get(timeout=self._hedge_after_s)
            except queue.Empty:
                remaining_s = self._timeout_s - self._hedge_after_s
                calls.append(start(self._hedge_router, self._hedge_address, remaining_s))
                call, address = finished.get()
                if call.code() is not grpc.StatusCode.OK:
                    call, address = finished.get()  # the other one may still answer
            with translate_errors(address):
                if call.code() is not grpc.StatusCode.OK:
                    raise call
                answer: router_service_pb2.RouteResponse = call.result()
                return answer
        finally:
            for started in calls:
                started.cancel()
