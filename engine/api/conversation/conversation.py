"""A conversation as every surface reads it, whatever format it arrived in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engine.api.policy import Policy

Role = Literal["system", "user", "assistant", "tool"]
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}
MAX_PARTS = 10_000  # turns and content parts that are read, from the end of a conversation


@dataclass(frozen=True)
class ConversationTurn:
    """One turn, as its author and the texts of its parts; a turn of images alone has no text.

    failed: of a tool's result: the sender says that the tool failed.
    """

    role: Role
    parts: tuple[str, ...]
    failed: bool = False

    @property
    def text(self) -> str:
        """The parts, joined with line breaks."""
        return "\n".join(self.parts)


@dataclass(frozen=True)
class Needs:
    """What a request needs of the model that answers it.

    Attributes:
        modalities: What it must read in addition to text; see Candidate in the proto.
        features: What it must be able to do; see Candidate in the proto.
        max_output_tokens: Limit on the reply's tokens; 0 for none.
        api: The API that it must answer in; see Policy.required_api. Only logs set it: a gateway
            knows whether it translates between APIs.
    """

    modalities: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    max_output_tokens: int = 0
    api: str = ""

    def constrain(self, policy: Policy) -> Policy:
        """Return the policy with these needs added; its own room for the reply comes first."""
        return replace(
            policy,
            expected_output_tokens=policy.expected_output_tokens or self.max_output_tokens,
            required_modalities=_union(policy.required_modalities, self.modalities),
            required_features=_union(policy.required_features, self.features),
            required_api=policy.required_api or self.api,
        )


NO_NEEDS = Needs()


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*first, *second}))


@dataclass(frozen=True)
class Conversation:
    """What a request asks a model to read and do.

    Attributes:
        turns: Oldest first.
        other_texts: What the model reads besides: tools, calls, schemas.
        media_tokens: Tokens of images, audio and files, by their declared or documented sizes.
        uncounted: What has an unknown size, such as "stored history".
        unread_turns: Number of older turns and parts that were left out of `turns`.
        needs: What the model must support.
        session: Hint that names the session; "" for none.
    """

    turns: tuple[ConversationTurn, ...]
    other_texts: tuple[str, ...] = ()
    media_tokens: int = 0
    uncounted: tuple[str, ...] = ()
    unread_turns: int = 0
    needs: Needs = NO_NEEDS
    session: str = ""


def with_ask(turns: list[ConversationTurn]) -> list[ConversationTurn]:
    """If no turn is a user's, the last one that has text is what the model is asked.

    What a tool answered is never the ask: the human's is then in a stored history.
    """
    if any(turn.role == "user" for turn in turns):
        return turns
    if any(turn.role == "tool" for turn in turns):
        return [ConversationTurn("user", ()), *turns]
    for i in range(len(turns) - 1, -1, -1):
        if turns[i].text.strip():
            return [*turns[:i], ConversationTurn("user", turns[i].parts), *turns[i + 1 :]]
    return [*turns, ConversationTurn("user", ())]
