"""Write a prediction file for RouterArena (arXiv 2510.00202). Its items are for evaluation only.

    python -m training.evaluation.routerarena --bundle artifacts/bundle --dataset FILE \\
        --models MODELS.json --name modelsat --out DIR

--dataset is a split of RouterArena as JSON: a list of objects with "global index" and
"prompt_formatted" or "prompt". --models maps RouterArena's name of a model to the ID of a candidate
in the catalog, and so says among which candidates is chosen. Writes config/NAME.json and
predictions/NAME.json under --out, in the form that RouterArena's own check reads; its pipeline asks
the chosen models and grades their answers. With --robustness the file is NAME-robustness.json.

Shapes: B items, M candidates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.registry.catalog import read_catalog
from training.evaluation.texts import choose, score_texts

ROUTER_CLASS = "ModelsatRouter"  # that RouterArena's configuration names


def prompt_of(item: Mapping[str, Any]) -> str:
    """Return the prompt that RouterArena compares a prediction with."""
    return str(item.get("prompt_formatted") or item.get("prompt") or "")


def read_items(path: Path) -> list[dict[str, Any]]:
    """Read a split of RouterArena.

    Raises InvalidInputError: the file has no items, or one of them has no index or no prompt.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(Violation(str(path), f"is not readable JSON ({error}).")) from error
    if not isinstance(items, list) or not items:
        raise InvalidInputError(Violation(str(path), "has no list of items."))
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not item.get("global index") or not prompt_of(item):
            problem = 'has no "global index" or no prompt.'
            raise InvalidInputError(Violation(f"{path}, item {number}", problem))
    return items


def predict(
    bundle: Path,
    catalog: Path,
    items: Sequence[Mapping[str, Any]],
    models: Mapping[str, str],
    sensitivity: float,
) -> list[dict[str, Any]]:
    """Return an entry of the prediction file for each item.

    models: RouterArena's name -> candidate ID. Raises InvalidInputError if the catalog lacks one.
    """
    known = {candidate.id: candidate for candidate in read_catalog(catalog)}
    if missing := sorted(set(models.values()) - set(known)):
        raise InvalidInputError(Violation("--models", f"names {missing}, not in {catalog}."))
    names = list(models)
    candidates = [known[models[name]] for name in names]
    p, costs = score_texts(bundle, [prompt_of(item) for item in items], candidates)
    return [
        {
            "global index": item["global index"],
            "prompt": prompt_of(item),
            "prediction": names[column],
            "generated_result": None,
            "cost": None,
            "accuracy": None,
            "for_optimality": False,
        }
        for item, column in zip(items, choose(p, costs, sensitivity), strict=True)
    ]


def main() -> None:
    """Route every item and write the configuration and the predictions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"), help="bundle")
    parser.add_argument("--catalog", type=Path, help="file with candidates (the bundle's own)")
    parser.add_argument("--dataset", type=Path, required=True, help="a split of RouterArena")
    text = "JSON file: RouterArena's name of a model -> candidate ID"
    parser.add_argument("--models", type=Path, required=True, help=text)
    parser.add_argument("--name", default="modelsat", help="name of the router (modelsat)")
    parser.add_argument("--cost-sensitivity", type=float, default=0.0, help="of the choices (0)")
    parser.add_argument("--robustness", action="store_true", help="the split of reworded items")
    parser.add_argument("--out", type=Path, required=True, help="folder for config and predictions")
    arguments = parser.parse_args()
    models: dict[str, str] = json.loads(arguments.models.read_text(encoding="utf-8"))
    items = read_items(arguments.dataset)
    catalog = arguments.catalog or arguments.bundle / "zoo.json"
    found = predict(arguments.bundle, catalog, items, models, arguments.cost_sensitivity)
    names = {"router_name": arguments.name, "router_cls_name": ROUTER_CLASS}
    config = {"pipeline_params": names | {"models": list(models)}}
    stem = arguments.name + ("-robustness" if arguments.robustness else "")
    for path, content in (
        (arguments.out / "config" / f"{arguments.name}.json", config),
        (arguments.out / "predictions" / f"{stem}.json", found),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, ensure_ascii=False, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
    counts = {name: sum(entry["prediction"] == name for entry in found) for name in models}
    print(json.dumps({"items": len(found), "chosen": counts}))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
