"""The command line of scripts that fit a part of the shipped weights by a bundle's scores."""

from __future__ import annotations

import argparse
from pathlib import Path


def fit_parser(description: str, sampled: str, count: int, target: str) -> argparse.ArgumentParser:
    """Return a parser of --bundle, --data, --out and of how much of each folder is read.

    Args:
        description: of the script.
        sampled: what is read of each folder, and the flag's name: "texts" or "rows".
        count: of them, at most, by default.
        target: the file in --out that gets the result.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--bundle", type=Path, default=Path("artifacts/bundle"), help="to read the texts by"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data folders")
    parser.add_argument(f"--{sampled}", type=int, default=count, help="at most, of each folder")
    parser.add_argument(
        "--out", type=Path, default=Path("pretrained"), help=f"folder whose {target} gets it"
    )
    return parser
