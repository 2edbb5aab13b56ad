"""Texts that make a careless search take minutes are read at once, and read right.

Kind: no time that grows faster than the text. Each of these took from seconds to hours when the
patterns gave back what they had taken, or searched to the end of the text for each tag.
"""

from collections.abc import Callable

import pytest

from engine.api.conversation.harness import human_text
from engine.api.conversation.parts import PartReader

SIZE = 512 * 1024  # --max-text-bytes
TAIL = "<" * SIZE


def _repeated(line: str, count: int = 2000) -> str:
    return "".join(line.format(i) for i in range(count))


UNREAD: dict[str, Callable[[], str]] = {
    "blanks within": lambda: f"Sort <this>{' ' * SIZE}list",
    "tabs within": lambda: f"Sort # {chr(9) * SIZE}list",
    "blanks after each word": lambda: f"[{'a. ' * (SIZE // 3)}]",
    "tags that nothing closes": lambda: _repeated("<a{}-reminder>\n") + TAIL,
    "fences that nothing closes": lambda: "\n".join("`" * n for n in range(1500, 3, -1)),
    "marks without an end": lambda: "<env>\n</env x" + "<env" * (SIZE // 4),
    "a long name of a tag": lambda: f"<a{'-hook' * (SIZE // 5)} instructions>",
    "headings of files": lambda: "# AGENTS.md instructions a <\n" * (SIZE // 28),
    "notes": lambda: "(See <attachments> above for file contents." * (SIZE // 43),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_text_without_a_whole_block_is_the_ask(name: str) -> None:
    text = UNREAD[name]()
    assert human_text([text]) == text.strip()


def test_tags_that_open_twice_are_searched_for_a_few_times() -> None:
    assert human_text([_repeated("<a{0}-hook>\n<a{0}-hook>\n</a{0}-hook>\n") + TAIL]).endswith(TAIL)


@pytest.mark.parametrize(
    "between",
    [f"{' ' * SIZE}\n", f"{' ' * SIZE}{chr(9) * 1000}\n", f"{chr(10) * SIZE}"],
    ids=["blanks", "blanks and tabs", "line breaks"],
)
def test_a_lead_may_be_followed_by_any_number_of_blanks(between: str) -> None:
    lead = "The user has provided feedback on the results. Consider it:"
    turn = f"{lead}{between}<feedback>\nUse a heap.\n</feedback>"
    assert human_text([turn]) == "Use a heap."
    aside = f"{lead}{between}Not a lead. <feedback>\nUse a heap.\n</feedback>"
    assert human_text([aside]).startswith(lead)


def test_blocks_are_left_out_of_a_long_text_wherever_they_are() -> None:
    block = '<system-reminder id="1">\nBe brief.\n</system-reminder>'
    prose = "A line of prose, which is longer than the block.\n" * 3000
    asked = f"{prose}{block}\n{prose}{block}\n{prose}"
    assert human_text([asked]) == asked.replace(block, "").strip()


def test_notes_of_an_agent_are_cut_with_the_blanks_before_them() -> None:
    note = " \t(See <attachments> above for file contents. You may not need to read them.)"
    tasks = "# TODO LIST UPDATE REQUIRED\n- [ ] one\n"
    block = "<environment_details>\nx\n</environment_details>"
    assert human_text([f"Fix it.{note}\nNow.\n{tasks}{block}"]) == "Fix it.\nNow."


def test_parameters_of_a_data_url_take_no_memory_each() -> None:
    """A match remembers each repetition: 5 million of them took 600 MB."""
    reader = PartReader("openai")
    address = "data:" + ";a" * SIZE
    reader.other("input", address, 0)
    assert reader.texts == [address]


def test_the_first_line_of_an_attached_file_ends() -> None:
    fence = f"``` {'a/' * 100}{' ' * SIZE}\n"
    assert human_text([f"{fence}x < 1\n```\nWhy?"]) == f"{fence}x < 1\n```\nWhy?"


def test_closings_in_fences_are_searched_for_a_few_times() -> None:
    quoted = "```\n</env>\n```\n" * 20
    fences = "```\n" * (SIZE // 8)
    text = f"<env>\n{fences}{quoted}</env>\nWhy?"
    assert human_text([text]).endswith("Why?")
