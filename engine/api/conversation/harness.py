"""Tell what a human wrote in a user turn from what a coding agent or editor put there.

Agents write reminders, hook output, environment blocks, tool results and summaries of earlier turns
into user turns. Only whole blocks at the beginning of a line count, and none in a code fence, so
that an ask that quotes such a tag stays whole.

Callers choose these texts, so the time is linear in their length. A pattern that is searched for in
a long text holds the interpreter's lock until it is found, so long texts are searched by str.find
or in steps, and what is repeated at the beginning of a pattern never gives back what it took.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.api.conversation.text_search import ScanBudget, cut, search

# Blocks that are never the ask: exact names, and families of names that agents build alike.
BLOCKS = re.compile(
    r"""(?:
      [\w-]*reminder(?:_?instructions|s)? | (?:[\w-]+[-_])?hook(?:[-_][\w-]+)? | ephemeral_message
    | (?:local[-_])?command[-_](?:name|message|contents|stdout|stderr|caveat) | local-command-[\w-]+
    | bash[-_](?:input|stdout|stderr) | user[-_]shell[-_]command | ide[-_][\w-]+ | new-diagnostics
    | (?:[\w-]+[-_])?notification | turn_aborted | user_action | model_switch | teammate-message
    | system[-_](?:warning|note|message|instructions?|info|information|status|prompt|event)
    | [\w-]*(?:deferred|available)[-_](?:tools|skills|agents|commands) | (?:total|used)[-_]tokens
    | (?:token|context)[-_](?:usage|budget) | selected[-_](?:lines|text|code) | claude_?md
    | [\w-]+-message-id | [\w-]+[-_](?:background[-_]info|mode[-_]info) | state_snapshot
    | (?:conversation|compaction)[-_]summary | user_instructions | permissions[ ]instructions
    | collaboration_mode | personality_spec | skills?_instructions | apps_instructions
    | environment[-_](?:context|details|info|information)
    | (?:session|editor|workspace|project|repository|repo|ide|additional|attached|user|machine|tool
        |global|environment|runtime|extra|os|git|shell|terminal)[-_]?(?:context|info|information|details|metadata|rules|layout|structure
        |state)
    | additional[-_]data | attached[-_]?files? | attachments? | manually_attached_skills
    | open(?:ed)?[-_](?:and_recently_viewed_)?files? | recently_viewed_files | current_file
    | currently_open_file | visible_files | open_tabs | linter_errors | lint_errors | git[-_]status
    | cursor_rules_context | always_applied_workspace_rules? | agent_requestable_workspace_rules?
    | agent_skills | agent_transcripts | mcp_file_system[\w-]* | mcp_instructions | edit_history
    | terminal_files_information | explicit_instructions | final_file_content | info-msg
    | file_content | folder_content | url_content | workspace_diagnostics | auto_generated_files
    | reminder_?instructions | tool_?references | repo_?map | instructions[ ]from[ ]agents
    )""",
    re.VERBOSE | re.IGNORECASE,
)
# Blocks whose content is the ask, and those that are asks only where a harness wrote all the rest.
ASKS = frozenset(
    ("user_query", "userrequest", "user_request", "user_message", "user_prompt", "command-args")
)
WEAK_ASKS = frozenset(
    ("task", "feedback", "answer", "new_task", "question", "prompt", "issue_description")
)
# Blocks that people write too: left out only in the company of another block of a harness.
WEAK_BLOCKS = frozenset(
    (
        "context",
        "instructions",
        "rules",
        "files",
        "file",
        "env",
        "memory",
        "summary",
        "timestamp",
        "skill",
        "transcript",
        "session",
        "conversation_history",
    )
)
# Blocks that are no ask if a turn has nothing else: agents have a title made of them, or a verdict.
DUMPS = frozenset(("transcript", "session", "conversation_history"))
# Contents that tell that a harness wrote a weak block, or one of another name.
_ATTACHED = re.compile(
    r"\s*+(?:the following items were attached by the user|working directory:"
    r"|<name>[^<\n]+</name>)",
    re.IGNORECASE,
)
_ATTACHED_TAGS = frozenset(("context", "env", "skill"))
# A block begins a line, or follows the end of a sentence: "Why? <system-reminder>".
_OPENING = re.compile(
    r"(?:(?P<begins_line>^)|(?<=[.?!。？！])(?=[ \t]*<))[ \t\u00a0\ufeff]*+"
    r"(?:(?P<fence>`{3,}|~{3,})"
    r"|<(?P<tag>[A-Za-z][\w-]{0,80}(?:[ ]instructions)?)(?:\s[^<>\n]{0,2000})?>)",
    re.MULTILINE,
)
# Parts of which a harness wrote everything up to the end.
_WHOLE_PARTS = re.compile(
    r"""\s*+(?:
      this\ (?:session|conversation|chat|thread)\ is\ being\ continued\ from\ a\ previous
    | another\ language\ model\ started\ to\ solve\ this\ problem
    | caveat:\ the\ messages\ below\ were\ generated\ by\ the\ user\ while\ running
    | \[request\ interrupted\ by\ user[^\]\n]*+\]\s*+$
    | (?:session-?start|session-?end|user-?prompt-?submit|pre-?tool-?use|post-?tool-?use
        |subagent-?stop|stop|notification|pre-?compact)(?::[\w-]+){0,2}\ hook\s
    | \[(?:task\ resumption|error)\]\s
    | i\ have\ \*added\ these\ files\ to\ the\ chat\*
    | here\ are\ (?:summaries\ of\ some|some\ read\ only)\ files
    | i\ switched\ to\ a\ new\ code\ base
    | the\ user\ interrupted\ the\ previous\ turn
    | called\ the\ \w+\ tool\ with\ the\ following\ input
    | this\ is\ [^\n.]{1,80}\.?\ we\ are\ setting\ up\ the\ context
    | here\ is\ (?:the\ user's\ editor\ context\ as\ a\ json\ object
        |a\ summary\ of\ changes\ in\ the\ user's\ editor\ context)
    | base\ directory\ for\ this\ skill:\ [^\n]+\n
    | (?:here\ is\ a\ )?summary\ of\ (?:the|our)\ conversation\ (?:to\ date|so\ far)\s*[:.\n]
    | (?:here\ is\ a\ |the\ following\ is\ a\ )?summary\ of\ (?:the|our)\ (?:previous\ |earlier\ )
        (?:conversation|session|messages|turns)
    | \#{1,3}\ summary\ of\ (?:the\ )?(?:previous|earlier)\ (?:conversation|session)
    | \[conversation\ summary
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_AGENTS_PART = re.compile(r"\s*+# agents\.md instructions\b", re.IGNORECASE)
# A tool's result as text: Cline and Roo name the tool in brackets.
_ENDS_LINE = re.compile(r"[ \t]*(?:\r?\n|<|\Z)")
_TOOL_RESULT = re.compile(r"\s*+\[[a-z]+(?:_[a-z]+)++(?: for [^\n]{0,500})?\] Result:")
# A sentence that a harness writes before the block that holds the ask.
_LEAD = re.compile(
    r"\s*+(?:the user has provided feedback on the results[^\n]*+|new instructions for task"
    r" continuation:?|\[task\])\s*+",
    re.IGNORECASE,
)
_AGENTS_FILE = re.compile(r"^# AGENTS\.md instructions[^\n]*+\n\s*+(?=<INSTRUCTIONS>)", re.M)
_REQUEST_HEADING = re.compile(r"^## My request for [^\n:]{1,40}:[ \t]*+\n", re.MULTILINE)
_IDE_HEADING = re.compile(r"\s*+# Context from my IDE setup:", re.IGNORECASE)
MAX_TAGS = 2_000  # openings that are looked at in a turn; what follows is taken as text
MAX_QUOTED = 20  # closings in code fences of one block
MAX_QUOTE_CHARS = 64 * 1024  # between such a fence and the end of its block
_FENCE = re.compile(r"^[ \t]{0,3}(```|~~~)", re.MULTILINE)
# Continue puts files before an ask, each in a fence with its language and path, or its lines.
_ATTACHED_FILE = re.compile(
    r"\s*+(?P<fence>`{3,}+|~{3,}+)[\w+#.-]{0,20}+[ \t]{1,20}+"
    r"(?:[^\s`/\\]{0,200}[/\\][^\n`]{1,200}+|[^\s`]{1,200}+[ \t]\(\d{1,7}-\d{1,7}\)[ \t]{0,20}+)"
    r"\r?\n"
)
# Characters that are searched for closings: all of a turn a few times.
SCANS, MIN_SCANNED_CHARS = 4, 128 * 1024
# OpenCode writes that it read a file, and the file, as parts of the user's turn.
_CALLED = re.compile(r"\s*+called the \w+ tool with the following input", re.IGNORECASE)
_FILE_READ = re.compile(r"\s*+<(?:file|path|content|directory)>")
# Notes that agents append to an ask: Copilot's on attachments, Cline's on its list of tasks.
_SEE_ATTACHMENTS = re.compile(r"\(See <attachments> above for file contents\.[^\n()]{0,200}\)")
_TASK_LIST = re.compile(r"^# (?:TODO LIST|task_progress) (?:RECOMMENDED|CREATION|UPDATE)", re.M)
# A template of retrieval: instructions, sources in <context>, the ask.
_RETRIEVAL = re.compile(r"\s*+### Task:\s*+Respond to the user query using the provided context")
_REFERENCED = ("--- Content from referenced files ---", "--- End of content ---")


@dataclass(frozen=True)
class _Block:
    """A whole block: text[begin:end], with the content at text[inner:inner_end]."""

    tag: str
    begin: int
    inner: int
    inner_end: int
    end: int


def human_text(parts: Sequence[str]) -> str:
    """Return what the human wrote in a user turn of these parts; "" if a harness wrote it all."""
    kept, called = [], False
    for part in parts:
        is_read = called and _FILE_READ.match(part) is not None
        called = is_read or _CALLED.match(part) is not None
        if not is_read and not _is_whole(part):
            kept.append(part)
    text = _without_attached_files("\n".join(kept))
    if "<" not in text and "[" not in text and "# " not in text and "---" not in text:
        return text.strip()
    if _IDE_HEADING.match(text):
        text = _after_request_heading(text)
    if _RETRIEVAL.match(text) and (asked := text.rpartition("</context>")[2].strip()):
        text = asked
    text = _without_referenced_files(cut(text, "# AGENTS.md instructions", _AGENTS_FILE))
    for mark in ("# TODO LIST ", "# task_progress "):
        text = cut(text, mark, _TASK_LIST, until="\n<")
    text = cut(text, "(See <attachments> above", _SEE_ATTACHMENTS)
    is_result = _TOOL_RESULT.match(text) is not None
    blocks = _blocks(text)
    attached = any(
        block.tag in _ATTACHED_TAGS and _ATTACHED.match(text, block.inner) for block in blocks
    )
    strong = [block for block in blocks if block.tag in ASKS]
    if not (strong or is_result or attached) and not any(
        _is_harness(block.tag) for block in blocks
    ):
        if blocks and all(b.tag in DUMPS for b in blocks) and not _without(text, blocks).strip():
            return ""
        return _ask_in_weak_blocks(text, blocks) or text.strip()
    rest = _without(text, [b for b in blocks if b.tag not in ASKS and b.tag not in WEAK_ASKS])
    asks = strong or [b for b in blocks if b.tag in WEAK_ASKS]
    outside = "" if is_result else _without(rest, _blocks(rest, ASKS | WEAK_ASKS)).strip()
    if asks and (strong or not outside or _LEAD.fullmatch(outside)):
        contents = (text[block.inner : block.inner_end].strip() for block in asks)
        said = "\n".join(content for content in contents if content)
        # The arguments of a slash command come before the prompt that it stands for.
        if outside and {block.tag for block in strong} == {"command-args"}:
            return "\n".join(filter(None, (said, outside)))
        return said
    return "" if is_result else rest.strip(" \t\r\n\f\v\u00a0\ufeff")


def _ask_in_weak_blocks(text: str, blocks: Sequence[_Block]) -> str:
    """Return the content of weak blocks if there is nothing else, or only a lead; "" otherwise."""
    asks = [block for block in blocks if block.tag in WEAK_ASKS]
    outside = _without(text, asks).strip() if asks else text
    if not asks or (outside and not _LEAD.fullmatch(outside)):
        return ""
    return "\n".join(text[block.inner : block.inner_end].strip() for block in asks).strip()


def _is_harness(tag: str) -> bool:
    return tag in ASKS or BLOCKS.fullmatch(tag) is not None


def _blocks(text: str, tags: frozenset[str] | None = None) -> list[_Block]:
    """List the outermost whole blocks of known tags (or `tags`) outside code fences, in order."""
    found: list[_Block] = []
    folded, at = text.replace("\u0130", "i").lower(), 0  # the one letter that would grow
    budget = ScanBudget(SCANS * len(text) + MIN_SCANNED_CHARS)
    missing: set[str] = set()  # closings that do not occur in the rest of the text
    flat: set[str] = set()  # tags that open more often than they close
    for _ in range(MAX_TAGS):
        if budget.chars < 0 or (opening := search(_OPENING, text, at)) is None:
            break
        at = opening.end()
        if fence := opening["fence"]:
            closing = -1 if fence in missing else budget.find(text, f"\n{fence}", at)
            if closing < 0:
                missing.add(fence)
            else:
                at = closing + 1 + len(fence)
            continue
        tag = opening["tag"].lower()
        known = tag in tags if tags is not None else _is_known(tag)
        if not known or tag in missing:
            continue
        if (span := _closing(folded, tag, at, flat, budget)) is None:
            missing.add(tag)
            continue
        inner_end, end = span
        if opening["begins_line"] is None and not (
            BLOCKS.fullmatch(tag) and _ENDS_LINE.match(text, end)
        ):
            at = end
            continue  # quoted within a paragraph
        found.append(_Block(tag, opening.start(), opening.end(), inner_end, end))
        # A block may follow the end of another one on the same line.
        while (follower := _FOLLOWER.match(text, end)) is not None:
            tag = follower["tag"].lower()
            known = tag in tags if tags is not None else _is_known(tag)
            span = (
                None
                if not known or tag in missing
                else _closing(folded, tag, follower.end(), flat, budget)
            )
            if span is None:
                break
            inner_end, end = span
            found.append(_Block(tag, follower.start(), follower.end(), inner_end, end))
        at = end
    return found


def _closing(
    folded: str, tag: str, at: int, flat: set[str], budget: ScanBudget
) -> tuple[int, int] | None:
    """Return where the closing of a block that opened before `at` begins and ends.

    Blocks of the same tag may be nested. If the tag opens more often than it closes, a text only
    mentions it, and the next closing counts.
    """
    if budget.find(folded, f"</{tag}", at) < 0:
        return None
    inner, depth, first, quoted = at, 1, None, 0
    while (begin := budget.find(folded, tag, at)) >= 0:
        at = begin + len(tag)
        closes = folded.startswith("</", begin - 2)
        if not closes and folded[begin - 1] != "<":
            continue
        if (end := _MARK_END.match(folded, at)) is None:
            continue
        depth += -1 if closes else 1
        if closes:
            span = begin - 2, end.end()
            if depth == 0 and quoted < MAX_QUOTED and _is_quoted(folded, tag, inner, span, budget):
                depth, quoted = 1, quoted + 1
                continue
            first = first or span
            if depth == 0 or tag in flat:
                return span
    flat.add(tag)
    return first


def _is_quoted(
    folded: str, tag: str, at: int, closing: tuple[int, int], budget: ScanBudget
) -> bool:
    """Return True if a closing stands in a code fence of a block that goes on behind the fence.

    at: where the block's content begins.
    """
    fence = ""
    for line in budget.matches(_FENCE, folded, at, closing[0]):
        fence = line[1] if not fence else "" if line[1] == fence else fence
    end = budget.find(folded, f"\n{fence}", closing[1]) if fence else -1
    later = folded.find(f"</{tag}", end, end + MAX_QUOTE_CHARS) if end >= 0 else -1
    return later >= 0 and folded.find(f"<{tag}", closing[1], later) < 0


def _is_whole(part: str) -> bool:
    """Whether a harness wrote everything up to the end of a part."""
    if _AGENTS_PART.match(part):
        return part.rstrip()[-len(_END_OF_AGENTS) :].lower() == _END_OF_AGENTS
    return _WHOLE_PARTS.match(part) is not None


def _after_request_heading(text: str) -> str:
    """Return what follows the last heading of a request; the text itself if there is none."""
    begin = len(text)
    while (begin := text.rfind("## My request for ", 0, begin)) >= 0:
        if (heading := _REQUEST_HEADING.match(text, begin)) is not None:
            return text[heading.end() :]
    return text


def _is_known(tag: str) -> bool:
    return tag in WEAK_BLOCKS or tag in WEAK_ASKS or _is_harness(tag)


def _without(text: str, blocks: Sequence[_Block]) -> str:
    """Return the text between the blocks."""
    pieces, at = [], 0
    for block in blocks:
        pieces.append(text[at : block.begin])
        at = block.end
    return "".join((*pieces, text[at:]))


def _without_referenced_files(text: str) -> str:
    """Cut out files that Gemini CLI appends to a prompt that names them."""
    begin_mark, end_mark = _REFERENCED
    pieces, at = [], 0
    while (begin := text.find(begin_mark, at)) >= 0:
        end = text.find(end_mark, begin)
        if end < 0:
            break
        pieces.append(text[at:begin])
        at = end + len(end_mark)
    return "".join((*pieces, text[at:]))


def _without_attached_files(text: str) -> str:
    """Cut off files in front of an ask; a text of files alone stays whole."""
    at = 0
    while (opening := _ATTACHED_FILE.match(text, at)) is not None:
        fence = opening["fence"]
        end = text.find(f"\n{fence}", opening.end() - 1)
        if end < 0:
            break
        at = end + 1 + len(fence)
    return text[at:] if text[at:].strip(" \t\r\n`~") else text


_FOLLOWER = re.compile(r"[ \t]*+<(?P<tag>[A-Za-z][\w-]{0,80})(?:\s[^<>\n]{0,2000})?>")
_MARK_END = re.compile(r"\s{0,8}(?:\s[^<>\n]{0,200})?>")
_END_OF_AGENTS = "</instructions>"
