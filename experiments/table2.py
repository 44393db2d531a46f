"""Table 2 of the paper, the classification accuracy score (CAS), with ours beside it.

    python experiments/table2.py runs/demo

Reads what the tests of a data set's two classifiers have written: `cas/accuracy.json`, of the one that was
trained on samples, and `classifier/accuracy.json`, of the one that was trained on real images, its ceiling.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import paper
from vqvae2.surroundings import home_path, show_any_name
from vqvae2.training.classification_report import FORMAT, REPORT

RUNS = {"VQ-VAE-2": "cas", "real data": "classifier"}  # what a network was trained on: its run folder
_COLUMNS = ("top-1", "top-5")


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=home_path, help="folder of a data set's runs, such as runs/demo")
    run = parser.parse_args().run
    try:
        reports = {model: read_report(run, name) for model, name in RUNS.items()}
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(run.name, reports))


def read_report(run: Path, name: str) -> dict[str, Any]:
    """What `lightning test` has written about the classifier in a run folder.

    Raises:
        ValueError: it is not there, or is something else.
    """
    path = run / name / REPORT
    config = f"configs/{run.name}_{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist. Train the classifier and test it: lightning fit -c {config} && "
            f"lightning test -c {config}"
        )
    try:
        report = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}). Write it again: lightning test -c {config}"
        ) from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ValueError(f"{path} is no '{FORMAT}'. Write it again: lightning test -c {config}")
    return report


def table(dataset: str, reports: dict[str, dict[str, Any]]) -> str:
    """The table in percent, "-" where nothing was measured, and what ours was measured on."""
    published = {(row.model, row.tested_on): (row.top1, row.top5) for row in paper.TABLE_2}
    ours = {
        (model, on): _percent(report[on]) for model, report in reports.items() for on in _tested_on(report)
    }
    rows = [*published, *(row for row in ours if row not in published)]
    lines = [
        f"{'trained on':<12} {'tested on':<14} {'paper, ' + paper.DATA:>23}   {'ours, ' + dataset:>17}",
        f"{'':<27} {_cells(_COLUMNS, 11)}   {_cells(_COLUMNS, 8)}",
    ]
    for model, on in rows:
        cells = [_numbers(figures.get((model, on)), width) for figures, width in ((published, 11), (ours, 8))]
        lines.append(f"{model:<12} {on:<14} {'   '.join(cells)}")
    lines += [f"\n{model}: {_facts(report)}" for model, report in reports.items()]
    data = {report["data"] for report in reports.values()}
    if len(data) > 1:
        lines.append(f"\nThe two were not tested on the same images: {', '.join(sorted(data))}.")
    return "\n".join(lines)


def _tested_on(report: dict[str, Any]) -> list[str]:
    return [on for on in ("real", "reconstructed") if report[on] is not None]


def _percent(accuracy: dict[str, Any]) -> tuple[float, float | None]:
    top1, top5 = accuracy["top1"], accuracy["top5"]
    return 100 * top1, None if top5 is None else 100 * top5


def _numbers(values: tuple[float | None, ...] | None, width: int) -> str:
    return _cells(["-" if value is None else f"{value:.2f}" for value in values or (None, None)], width)


def _cells(texts: tuple[str, ...] | list[str], width: int) -> str:
    return " ".join(f"{text:>{width}}" for text in texts)


def _facts(report: dict[str, Any]) -> str:
    return (
        f"{report['num_train']:,} images of {report['trained_on']}, {report['step']:,} steps; tested on "
        f"{report['num_images']:,} of {report['data']}; {report['checkpoint']}\n  {report['command']}"
    )


if __name__ == "__main__":
    main()
