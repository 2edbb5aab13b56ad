"""Bind the gateway's lists of candidates to requests that name a model instead of an alias.

Otherwise a client that may use only cheap candidates would name an expensive one in its body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.api.policy import Policy


def may_name(
    model: str,
    policy: Policy,
    upstream_names: Mapping[str, str],
    is_candidate: Callable[[str], bool],
    *,
    routed: bool,
) -> bool:
    """Whether a request under `policy` may name `model` in its body.

    Args:
        model: as the body has it.
        policy: its lists of allowed and denied candidates count.
        upstream_names: candidate ID -> the upstream's name for it, if that differs.
        is_candidate: whether an ID is registered.
        routed: whether the path is one for which models are selected. There, a list of allowed
            candidates excludes every name that is not one of them; elsewhere, as for embeddings,
            it excludes only the other candidates.
    """

    def meant(candidates: tuple[str, ...]) -> set[str]:
        names = {name for i in candidates for name in (i, upstream_names.get(i, i))}
        return {_plain(name) for name in names}

    name = _plain(model)
    if name in meant(policy.denied_candidates):
        return False
    if not policy.allowed_candidates:
        return True
    if routed:
        return model in {upstream_names.get(i, i) for i in policy.allowed_candidates} or (
            model in policy.allowed_candidates
        )
    is_other = is_candidate(model) or name in {_plain(n) for n in upstream_names.values()}
    return not is_other or name in meant(policy.allowed_candidates)


def _plain(name: str) -> str:
    """Return what an upstream may take a name for: some ignore blanks and capitals."""
    return name.strip().casefold()
