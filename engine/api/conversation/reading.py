"""The one reading of a request, behind every surface: the ask, its context and its needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.api.conversation.body import from_body
from engine.api.conversation.conversation import NO_NEEDS, Conversation, ConversationTurn, Needs
from engine.api.conversation.harness import human_text
from engine.api.conversation.progress import goes_on, recent_failures
from engine.api.conversation.tokens import TokenCount, TokenCounter, count_texts
from engine.api.policy import Session, named_session


@dataclass(frozen=True)
class ConversationReading:
    """What a request says about the choice of a model.

    Attributes:
        ask: The task: what the human last asked for. A turn that only tells the model to go on is
            no ask. "" if there is no text to route by.
        context: Tokens that the selected candidate reads besides `ask`, and how they were counted.
        kind: "instruction", or "none" if `ask` is empty.
        in_tool_loop: True if the model is at work on `ask`: tools answered after it, or the human
            asked the model to go on.
        failures: How much failed since `ask`; see recent_failures.
        needs: What the model must support.
        session: Hint that names the session; "" for none.
    """

    ask: str
    context: TokenCount
    kind: Literal["instruction", "none"]
    in_tool_loop: bool = False
    failures: int = 0
    needs: Needs = NO_NEEDS
    session: str = ""

    def session_of(self, named: Session | None) -> Session | None:
        """Return the session to route in.

        In a tool loop a session keeps its candidate, unless it names a margin. A session that only
        the body hints at does not hold back a choice for a new ask.
        """
        if named is not None:
            stays = named.margin is None and self.in_tool_loop
            return replace(named, margin=KEEP) if stays else named
        return hinted_session(self.session, self.in_tool_loop) if self.session else None


KEEP = 1e9  # a switching margin that no candidate exceeds
# Stated sizes may be any number; more than this fits no model, and sums leave an answer's field.
MAX_TOKENS = 10**12


def read_body(
    body: Mapping[str, Any], path: str = "", counter: TokenCounter | None = None
) -> ConversationReading:
    """Read a parsed request body; see `from_body`, also for errors, and `read`."""
    return read(from_body(body, path), counter)


def read(conversation: Conversation, counter: TokenCounter | None = None) -> ConversationReading:
    """Read a conversation. counter: the bundle's tokenizer; None estimates tokens by the script."""
    turns = conversation.turns
    ask, asked_at = find_ask(turns)
    context: list[str] = []
    for i, turn in enumerate(turns):
        if i != asked_at:
            context += turn.parts
        elif (text := turn.text.strip()) != ask:
            context.append(_around(text, ask))
    counted = count_texts((*context, *conversation.other_texts), counter)
    return ConversationReading(
        ask=ask,
        context=_with_unread(counted, conversation),
        kind="instruction" if ask else "none",
        in_tool_loop=in_tool_loop(turns, asked_at),
        failures=recent_failures(turns, asked_at),
        needs=conversation.needs,
        session=conversation.session,
    )


def find_ask(turns: Sequence[ConversationTurn]) -> tuple[str, int]:
    """Return the last ask of a human and the position of its turn; ("", -1) if there is none.

    Replies to the model that only tell it to go on are skipped, unless there is no other turn.
    """
    last = "", -1
    for i in range(len(turns) - 1, -1, -1):
        if turns[i].role == "user" and (ask := human_text(turns[i].parts)):
            if not goes_on(ask) or i == 0 or turns[i - 1].role not in ("assistant", "tool"):
                return ask, i
            if last[1] < 0:
                last = ask, i
    return last


def in_tool_loop(turns: Sequence[ConversationTurn], asked_at: int) -> bool:
    """Return True if tools answered after the ask at that position, or the human asked the model to
    go on."""
    later = turns[asked_at + 1 :]
    if any(turn.role == "tool" for turn in later):
        return True
    return any(turn.role == "user" and human_text(turn.parts) != "" for turn in later)


def hinted_session(hint: str, in_loop: bool) -> Session | None:
    """Return the session that a body hints at, None if the hint is blank."""
    return named_session(hint, KEEP if in_loop else 0.0)


def _around(text: str, ask: str) -> str:
    """Return what a harness added to the ask of a turn."""
    head, found, tail = text.partition(ask)
    return head + tail if found else text[: max(0, len(text) - len(ask))]


def _with_unread(count: TokenCount, conversation: Conversation) -> TokenCount:
    """Add media, and turns that were not read at the mean size of those that were."""
    tokens, method = count.tokens + conversation.media_tokens, count.method
    if conversation.media_tokens:
        method = "mixed" if count.tokens and method != "estimate" else "estimate"
    if conversation.unread_turns:
        mean = count.tokens / max(1, len(conversation.turns))
        tokens, method = tokens + math.ceil(mean * conversation.unread_turns), "estimate"
    unknown = tuple(dict.fromkeys((*count.unknown, *conversation.uncounted)))
    return TokenCount(min(tokens, MAX_TOKENS), method, unknown)
