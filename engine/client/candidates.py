"""The methods of the clients that read, change and watch candidates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from engine.api.candidate import Candidate
from engine.api.proto import candidate_from
from engine.client.requests import (
    create_request,
    delete_request,
    replace_request,
    resource_name,
    rollback_request,
    update_request,
    watch_request,
)
from engine.client.results import CandidatesChange, RevisionInfo, change_from, revision_from
from engine.pb import candidate_service_pb2, candidate_service_pb2_grpc


class CandidateCalls:
    """The methods of Client that read, change and watch candidates."""

    _candidates: candidate_service_pb2_grpc.CandidateServiceStub
    _call: Callable[[Any, Any], Any]
    _pages: Callable[[Any, Any], Iterator[Any]]
    _stream: Callable[[Any, Any], Iterator[Any]]

    def list_candidates(self, *, min_revision_token: str = "") -> list[Candidate]:
        """Return all candidates, ordered by ID.

        Example:
            print([candidate.id for candidate in client.list_candidates()])
        """
        request = candidate_service_pb2.ListCandidatesRequest(min_revision_token=min_revision_token)
        pages = self._pages(self._candidates.ListCandidates, request)
        return [candidate_from(c, "candidates") for page in pages for c in page.candidates]

    def set_aside(self) -> dict[str, str]:
        """Return which candidates the server leaves out for a time because they failed.

        Returns:
            ID of the candidate -> why, and for how long.

        Example:
            print(client.set_aside())
        """
        request = candidate_service_pb2.ListCandidatesRequest(page_size=1)
        return dict(self._call(self._candidates.ListCandidates, request).set_aside)

    def get_candidate(self, candidate: str, *, min_revision_token: str = "") -> Candidate:
        """Return one candidate by its ID.

        Example:
            print(client.get_candidate("yi-6b-chat").context_window)
        """
        request = candidate_service_pb2.GetCandidateRequest(
            name=resource_name(candidate), min_revision_token=min_revision_token
        )
        return candidate_from(self._call(self._candidates.GetCandidate, request), "candidate")

    def create_candidate(self, candidate: Candidate, *, validate_only: bool = False) -> Candidate:
        """Register a new candidate; it is ranked from the next request on, without training.

        Args:
            candidate: The candidate with its aptitude results. Of fewer than 50 tasks, the others
                are estimated.
            validate_only: Check everything and change nothing.

        Example:
            tutor = dataclasses.replace(client.get_candidate("yi-6b-chat"), id="tutor")
            client.create_candidate(tutor)
        """
        request = create_request(candidate, validate_only)
        return candidate_from(self._call(self._candidates.CreateCandidate, request), "candidate")

    def update_candidate(
        self,
        candidate: Candidate,
        fields: Sequence[str] = (),
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> Candidate:
        """Change a registered candidate.

        Args:
            candidate: The new values; its ID says which candidate to change.
            fields: Names of the fields to change; all of them by default.
            etag: Fail unless the candidate still has this etag, see `Candidate.etag`.
            allow_missing: Register the candidate if it does not exist.
            validate_only: Check everything and change nothing.

        Example:
            known = client.get_candidate("yi-6b-chat")
            tagged = dataclasses.replace(known, tags=("production",))
            client.update_candidate(tagged, ["tags"], etag=known.etag)
        """
        request = update_request(candidate, fields, etag, allow_missing, validate_only)
        return candidate_from(self._call(self._candidates.UpdateCandidate, request), "candidate")

    def delete_candidate(
        self,
        candidate: str,
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> None:
        """Remove a candidate by its ID.

        Args:
            candidate: ID of the candidate.
            etag: Fail unless the candidate still has this etag.
            allow_missing: Succeed if the candidate does not exist.
            validate_only: Check everything and change nothing.

        Example:
            client.delete_candidate("tutor", allow_missing=True)
        """
        request = delete_request(candidate, etag, allow_missing, validate_only)
        self._call(self._candidates.DeleteCandidate, request)

    def replace_candidates(
        self, candidates: Sequence[Candidate], *, validate_only: bool = False
    ) -> int:
        """Replace all candidates at once; either all of it happens or nothing.

        Returns:
            The new revision.

        Example:
            client.replace_candidates(client.list_candidates(), validate_only=True)
        """
        request = replace_request(candidates, validate_only)
        return int(self._call(self._candidates.BatchReplaceCandidates, request).revision)

    def list_revisions(self) -> list[RevisionInfo]:
        """Return the revisions that can be rolled back to, newest first.

        Example:
            print(client.list_revisions()[0].description)
        """
        request = candidate_service_pb2.ListRevisionsRequest()
        pages = self._pages(self._candidates.ListRevisions, request)
        return [revision_from(revision) for page in pages for revision in page.revisions]

    def rollback(self, revision: int, *, validate_only: bool = False) -> RevisionInfo:
        """Bring back the candidates of an earlier revision, as a new revision.

        Args:
            revision: Number of a revision in `list_revisions`.
            validate_only: Check everything and change nothing.

        Returns:
            The new revision.

        Example:
            client.rollback(client.list_revisions()[-1].number, validate_only=True)
        """
        request = rollback_request(revision, validate_only)
        return revision_from(self._call(self._candidates.RollbackRevision, request).revision)

    def watch_candidates(self, last_seen_revision: int = 0) -> Iterator[CandidatesChange]:
        """Follow changes of the candidates, without a time limit.

        Args:
            last_seen_revision: Revision that you have; with 0 the first message, which comes at
                once, holds all candidates.

        Yields:
            Each change. A slow reader gets the newest state instead of every step.

        Example:
            for change in client.watch_candidates():
                print(change.revision, len(change.changed), change.removed)
                break
        """
        request = watch_request(last_seen_revision)
        for response in self._stream(self._candidates.WatchCandidates, request):
            yield change_from(response)


class AsyncCandidateCalls:
    """The methods of AsyncClient that read, change and watch candidates."""

    _candidates: candidate_service_pb2_grpc.CandidateServiceStub
    _call: Callable[[Any, Any], Awaitable[Any]]
    _pages: Callable[[Any, Any], AsyncIterator[Any]]
    _stream: Callable[[Any, Any], AsyncIterator[Any]]

    async def list_candidates(self, *, min_revision_token: str = "") -> list[Candidate]:
        """Return all candidates, ordered by ID.

        Example:
            print([candidate.id for candidate in await client.list_candidates()])
        """
        request = candidate_service_pb2.ListCandidatesRequest(min_revision_token=min_revision_token)
        pages = self._pages(self._candidates.ListCandidates, request)
        return [candidate_from(c, "candidates") async for page in pages for c in page.candidates]

    async def set_aside(self) -> dict[str, str]:
        """Return which candidates the server leaves out for a time because they failed.

        Returns:
            ID of the candidate -> why, and for how long.

        Example:
            print(await client.set_aside())
        """
        request = candidate_service_pb2.ListCandidatesRequest(page_size=1)
        return dict((await self._call(self._candidates.ListCandidates, request)).set_aside)

    async def get_candidate(self, candidate: str, *, min_revision_token: str = "") -> Candidate:
        """Return one candidate by its ID.

        Example:
            print((await client.get_candidate("yi-6b-chat")).context_window)
        """
        request = candidate_service_pb2.GetCandidateRequest(
            name=resource_name(candidate), min_revision_token=min_revision_token
        )
        message = await self._call(self._candidates.GetCandidate, request)
        return candidate_from(message, "candidate")

    async def create_candidate(
        self, candidate: Candidate, *, validate_only: bool = False
    ) -> Candidate:
        """Register a new candidate; see `Client.create_candidate`.

        Example:
            known = await client.get_candidate("yi-6b-chat")
            await client.create_candidate(dataclasses.replace(known, id="tutor"))
        """
        request = create_request(candidate, validate_only)
        message = await self._call(self._candidates.CreateCandidate, request)
        return candidate_from(message, "candidate")

    async def update_candidate(
        self,
        candidate: Candidate,
        fields: Sequence[str] = (),
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> Candidate:
        """Change a registered candidate; see `Client.update_candidate`.

        Example:
            known = await client.get_candidate("yi-6b-chat")
            tagged = dataclasses.replace(known, tags=("production",))
            await client.update_candidate(tagged, ["tags"], etag=known.etag)
        """
        request = update_request(candidate, fields, etag, allow_missing, validate_only)
        message = await self._call(self._candidates.UpdateCandidate, request)
        return candidate_from(message, "candidate")

    async def delete_candidate(
        self,
        candidate: str,
        *,
        etag: str = "",
        allow_missing: bool = False,
        validate_only: bool = False,
    ) -> None:
        """Remove a candidate by its ID; see `Client.delete_candidate`.

        Example:
            await client.delete_candidate("tutor", allow_missing=True)
        """
        request = delete_request(candidate, etag, allow_missing, validate_only)
        await self._call(self._candidates.DeleteCandidate, request)

    async def replace_candidates(
        self, candidates: Sequence[Candidate], *, validate_only: bool = False
    ) -> int:
        """Replace all candidates at once and return the new revision.

        Example:
            await client.replace_candidates(await client.list_candidates(), validate_only=True)
        """
        request = replace_request(candidates, validate_only)
        return int((await self._call(self._candidates.BatchReplaceCandidates, request)).revision)

    async def list_revisions(self) -> list[RevisionInfo]:
        """Return the revisions that can be rolled back to, newest first.

        Example:
            print((await client.list_revisions())[0].description)
        """
        request = candidate_service_pb2.ListRevisionsRequest()
        pages = self._pages(self._candidates.ListRevisions, request)
        return [revision_from(revision) async for page in pages for revision in page.revisions]

    async def rollback(self, revision: int, *, validate_only: bool = False) -> RevisionInfo:
        """Bring back the candidates of an earlier revision, as a new revision.

        Example:
            oldest = (await client.list_revisions())[-1]
            await client.rollback(oldest.number, validate_only=True)
        """
        request = rollback_request(revision, validate_only)
        response = await self._call(self._candidates.RollbackRevision, request)
        return revision_from(response.revision)

    async def watch_candidates(
        self, last_seen_revision: int = 0
    ) -> AsyncIterator[CandidatesChange]:
        """Follow changes of the candidates; see `Client.watch_candidates`.

        Example:
            async for change in client.watch_candidates():
                print(change.revision, len(change.changed), change.removed)
                break
        """
        request = watch_request(last_seen_revision)
        async for response in self._stream(self._candidates.WatchCandidates, request):
            yield change_from(response)
