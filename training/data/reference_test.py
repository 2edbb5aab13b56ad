"""Write engine/aptitude/reference_test.json: which questions the training candidates sat, as hashes
of their text, and how they did on each task; no question's text.

    python -m training.data.reference_test --data ../shared/data/mmlu_pro_cot

The folder is the one whose figures the zoo carries.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from engine.aptitude.questions import FILE, read_folder


def standard_test(folder: Path) -> dict[str, object]:
    """Task -> mean accuracy of the folder's candidates, and the keys of its items."""
    sat = json.loads((folder / "aptitude.json").read_text(encoding="utf-8"))
    figures = np.array([sat["scores"][name] for name in sorted(sat["scores"])], dtype=np.float64)
    items = read_folder(folder)
    return {
        task: {"mean": round(float(mean), 4), "items": [q.key for q in items[task]]}
        for task, mean in zip(sat["tasks"], np.nanmean(figures, axis=0), strict=True)
    }


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    test = standard_test(parser.parse_args().data)
    lines = ",\n".join(f" {json.dumps(task)}: {json.dumps(entry)}" for task, entry in test.items())
    FILE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{len(test)} tasks written to {FILE}")


if __name__ == "__main__":
    main()
