"""Table 1 of the paper beside ours: likelihoods of the priors and errors of the autoencoder.

    python experiments/table1.py runs/demo runs/cifar10
    python experiments/table1.py runs/demo --markdown

Reads the `metrics.json` that `make eval-fid CONFIG=X` leaves, of any data set and any number of levels.
"""

import argparse
import sys
from typing import Any

from evaluations import NONE, print_table, read_evaluation
from paper import DATA, PAPER, TABLE_1
from vqvae2.surroundings import home_path, show_any_name

ROWS = {  # names of figures, what the table calls them, digits after the point
    **{f"nll_{level}": (f"NLL {level}, nats a code", 2) for level in ("top", "mid", "bottom")},
    "mse": ("MSE, pixels in [-1, 1]", 4),
}
SPLITS = {"train": "train", "val": "validation"}
NOT_COMPARABLE = (
    "NLL of different autoencoders, ours or the paper's, cannot be compared: each predicts its own codes."
)


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=home_path, nargs="+", help="folders of data sets' runs, such as runs/demo"
    )
    parser.add_argument("--markdown", action="store_true", help="for a README")
    options = parser.parse_args()
    try:
        evaluations = {str(run): read_evaluation(run) for run in options.runs}
        rows = table(evaluations)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_table(rows, markdown=options.markdown)
    print(f"\npaper: {PAPER}, {DATA}. {NOT_COMPARABLE}")


def table(evaluations: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A header, a row a prior from the top down, and a row for the autoencoder.

    Args:
        evaluations: the content of `metrics.json` by the run's name.

    Raises:
        ValueError: an evaluation holds nothing of the table.
    """
    ours = {name: evaluation["figures"] for name, evaluation in evaluations.items()}
    paper = {row.key: row for row in TABLE_1}
    for name, figures in ours.items():
        if not any(f"{key}_{split}" in figures for key in ROWS for split in SPLITS):
            raise ValueError(
                f"The evaluation of {name} has neither likelihoods nor errors: it was given no priors and no "
                "autoencoder. Name them in its config."
            )
    rows = [["", *(f"{name}, {split}" for name in ("paper", *ours) for split in SPLITS.values())]]
    for key, (name, digits) in ROWS.items():
        found = [figures.get(f"{key}_{split}") for figures in ours.values() for split in SPLITS]
        if key not in paper and found.count(None) == len(found):
            continue
        published = [paper[key].train, paper[key].validation] if key in paper else [None, None]
        rows.append([name, *(_cell(value, digits) for value in [*published, *found])])
    return rows


def _cell(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
