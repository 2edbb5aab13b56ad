"""Write engine/datasets/reference_test.json from a data folder with an aptitude test.

    python -m training.data.reference_test --data ../shared/data/mmlu_pro_cot

It holds the questions that the training candidates were asked, as hashes of their text, and their
mean accuracy on each task; no question's text. The folder is the one whose accuracies the catalog
of shipped candidates carries.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from engine.aptitude.questions import read_folder
from engine.datasets.flags import add_data
from engine.datasets.known_tasks import REFERENCE_FILE


def reference_test(folder: Path) -> dict[str, object]:
    """Collect task -> mean accuracy of the folder's candidates, and the keys of its items."""
    test = json.loads((folder / "aptitude.json").read_text(encoding="utf-8"))
    accuracies = np.array([test["scores"][n] for n in sorted(test["scores"])], dtype=np.float64)
    items = read_folder(folder)
    return {
        task: {"mean": round(float(mean), 4), "items": [q.key for q in items[task]]}
        for task, mean in zip(test["tasks"], np.nanmean(accuracies, axis=0), strict=True)
    }


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data(parser, "data folder with aptitude.json")
    test = reference_test(parser.parse_args().data)
    lines = ",\n".join(f" {json.dumps(task)}: {json.dumps(entry)}" for task, entry in test.items())
    REFERENCE_FILE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{len(test)} tasks written to {REFERENCE_FILE}")


if __name__ == "__main__":
    main()
