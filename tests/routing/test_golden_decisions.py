"""Decisions that were recorded, and those of today's code.

Up to the match of instructions with the tasks of candidates' tests (docs/adr/0029) they were those
of version 0.1, made before the restructuring; with a bundle that has no places of tasks, today's
code still made all of them. The match and the lift of everyday prompts, which most of these are,
changed probabilities by .18 on average and .69 at most, and 12 selections, each to a cheaper
candidate. So they were recorded again, and a second time for the weights that ten folders trained,
which changed 52 of 214 selections. Since the catalog tells how hard tasks are, and not the
table, 27 decisions have other probabilities (.05 at most) and the same selections. An int8 forward
pass that is nearer to float32 (docs/adr/0035) changed 22 of 241 selections; 10 differ from those of
float32 now, instead of 15.

On the processor that golden_decisions.json names, those of the int8 graph are compared. On another
one they are those of the float32 graph, because int8 kernels differ: their integer sums are exact
everywhere (nothing saturates), but the float operations between them
round otherwise, and an activation near the middle of two int8 steps then goes to the other one.
Weights changed by 1e-7 of themselves move an int8 probability by 1e-3 in the median and by 1e-2 at
most, and a float32 one by 1e-6 (241 decisions). Either way probabilities must agree to 1e-5;
choices, kinds, costs and exclusions must be equal, and two candidates may change places only where
their recorded utilities are no further apart than that.

Input tokens, and the costs that follow from them, are not those of 0.1 in eight conversations: it
divided the characters of their earlier turns by four, and now the bundle's tokenizer counts them.
An empty session name, refused by 0.1, is no session now; that request has a wrong margin instead.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.routing.golden_replay import FP32, FP32_DEVICE, load, play, processor

GOLDEN = load()
SAME_PROCESSOR = GOLDEN["processor"] == processor()
TOLERANCE = 1e-5
EXACT = ("kind", "revision", "input tokens", "truncated", "error", "http status")
ROUNDING = 1e-6  # figures are kept to six decimals


def test_the_files_hold_all_decisions() -> None:
    steps = [step for server in GOLDEN["servers"] for step in server["steps"] if "requests" in step]
    asked = {step["name"]: len(step["requests"]) for step in steps}
    assert sum(asked.values()) == 241
    assert {step["name"]: len(step["decisions"]) for step in steps} == asked
    assert {name: len(decisions) for name, decisions in load(FP32).items()} == asked


def test_decisions_are_those_that_were_recorded() -> None:
    golden_fp32 = load(FP32)
    device = "" if SAME_PROCESSOR else FP32_DEVICE
    found = []
    for step, decisions in play(GOLDEN, device):
        before = step["decisions"] if SAME_PROCESSOR else golden_fp32[step["name"]]
        for i, (old, new) in enumerate(zip(before, decisions, strict=True)):
            found += [f"{step['name']}[{i}]: {each}" for each in differences(old, new, TOLERANCE)]
    assert not found, "\n".join(found)


def differences(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[str]:
    """Say what of `new` is not as it was, within the tolerance of probabilities."""
    found = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in EXACT
        if old.get(key) != new.get(key)
    ]
    for key in ("ood", "probability"):
        allowed = tolerance if key == "probability" else ROUNDING
        if old.get(key) != pytest.approx(new.get(key), abs=allowed + ROUNDING):
            found.append(f"{key} was {old.get(key)}, is {new.get(key)}")
    if not _tied(old, old.get("selected"), new.get("selected"), tolerance):
        found.append(f"selected was {old.get('selected')}, is {new.get('selected')}")
    elif "model header" in old:
        names = {new["selected"], new["model header"], new["model in body"]}
        found += [f"the model is called {names}"] if len(names) > 1 else []
    return [*found, *_exclusions(old, new), *_ranking(old, new, tolerance)]


def _exclusions(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """An error's details are cut to the size of a trailer, so there the wording decides how many
    candidates are listed; those that both list must agree."""
    before, after = old.get("excluded", {}), new.get("excluded", {})
    names = before.keys() | after.keys()
    if "error" in old and before and after:
        names = before.keys() & after.keys()
    return [
        f"{name} was excluded by {before.get(name)}, is by {after.get(name)}"
        for name in sorted(names)
        if before.get(name) != after.get(name)
    ]


def _ranking(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[str]:
    before = {name: figures for name, *figures in old.get("ranking", ())}
    after = {name: figures for name, *figures in new.get("ranking", ())}
    if before.keys() != after.keys():
        return [f"ranked were {sorted(before)}, are {sorted(after)}"]
    found = []
    for name, (probability, cost, utility) in before.items():
        now = after[name]
        allowed = pytest.approx([probability, utility], abs=tolerance + ROUNDING)
        if [now[0], now[2]] != allowed:
            found.append(f"{name} had {probability}, {utility}; has {now[0]}, {now[2]}")
        if now[1] != (cost if cost is None else pytest.approx(cost, rel=1e-6)):
            found.append(f"{name} cost {cost}, costs {now[1]}")
    places = {name: place for place, name in enumerate(before)}
    order = list(after)
    found += [
        f"{second} was ranked before {first}"
        for i, first in enumerate(order)
        for second in order[i + 1 :]
        if places[first] > places[second] and not _tied(old, first, second, tolerance)
    ]
    return found


def _tied(old: dict[str, Any], first: str | None, second: str | None, tolerance: float) -> bool:
    """Whether the record leaves open which of the two comes first."""
    utility = {name: u for name, _, _, u in old.get("ranking", ())}
    if first == second:
        return True
    if first not in utility or second not in utility:
        return False
    return abs(utility[first] - utility[second]) <= tolerance + ROUNDING
