"""Draw another candidate for a small share of requests, to learn how well it does.

Outcomes of the selected candidate alone cannot tell whether another one would have done better. A
draw with a known probability can: weighted by the reciprocal of that probability (the propensity),
outcomes estimate without bias what another policy would have given (engine/replay/off_policy.py;
D. G. Horvitz and D. J. Thompson, 1952). Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.routing.decision import Decision, RankingEntry


@dataclass(frozen=True)
class Exploration:
    """share: of requests for which another candidate is drawn, in [0, 1]; 0 turns it off. max_loss:
    of utility, compared with the selected candidate, that a drawn one may have."""

    share: float = 0.0
    max_loss: float = 0.05


NO_EXPLORATION = Exploration()


def explore(decision: Decision, exploration: Exploration, draw: float | None) -> Decision:
    """Return `decision` with its propensity, perhaps of another candidate.

    Only a decision of kind "ranked" is open: the others have a reason of their own. All candidates
    whose utility is at most max_loss below that of the selected one are drawn equally often.

    Args:
        decision: with its whole ranking, the selected candidate first.
        exploration: share and bound.
        draw: a uniform random number in [0, 1); None for a decision that must not be changed.
    """
    selected, *rest = decision.ranking
    least = selected.utility - exploration.max_loss
    others = [entry for entry in rest if entry.utility >= least]
    if decision.kind != "ranked" or not others or draw is None:
        return replace(decision, propensity=1.0)
    share = exploration.share
    if draw >= share:
        return replace(decision, propensity=1.0 - share)
    # Below `share`, the draw is uniform again after division by it.
    drawn = others[min(int(draw / share * len(others)), len(others) - 1)]
    return replace(
        decision,
        selected=drawn.candidate,
        reason=_reason(selected, drawn, len(others), exploration.max_loss),
        ranking=(drawn, *(entry for entry in decision.ranking if entry is not drawn)),
        kind="explored",
        propensity=share / len(others),
    )


def _reason(selected: RankingEntry, drawn: RankingEntry, count: int, max_loss: float) -> str:
    difference = drawn.utility - selected.utility
    others = "the only other candidate" if count == 1 else f"one of {count} other candidates"
    return (
        f"{drawn.candidate.id} was drawn to learn how well it does: {others} within {max_loss:g} of"
        f" the utility of {selected.candidate.id}, from which it differs by {difference:+.3f}."
    )
