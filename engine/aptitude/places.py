"""Place the tasks of a test among instructions, by its questions and the weights of a bundle.

What a server needs to match instructions with the test, see engine/registry/matching/task_match.py.
The bundle has the places of the tasks of the shipped test.
"""

from __future__ import annotations

import logging
from pathlib import Path

from engine.aptitude.selection import QuestionSet
from engine.datasets.known_tasks import reference_tasks

log = logging.getLogger(__name__)


def places_of_tasks(question_set: QuestionSet, bundle: Path) -> dict[str, bytes]:
    """Return task -> packed place (TaskResult.place) of the tasks that the shipped test has not.

    Empty if `bundle` is no folder of a bundle, or one without places. Raises BundleError.
    """
    own: dict[str, list[str]] = {}
    for question in question_set.questions:
        if question.task not in reference_tasks():
            own.setdefault(question.task, []).append(question.text)
    if not own:
        return {}
    if not (bundle / "manifest.json").is_file():
        log.warning(
            "%s has no bundle, so your own tasks are matched by keywords, which is less exact;"
            " --bundle names the folder of the server's bundle",
            bundle,
        )
        return {}
    from engine.bundle.arrays import load_arrays
    from engine.inference.offline import open_embedder, pack_places

    packed = pack_places(list(own.values()), open_embedder(bundle), load_arrays(bundle))
    return dict(zip(own, packed, strict=False))
