"""Several runs side by side on one page: figures, curves, pictures, settings, time and weights.

    python experiments/compare.py runs/a runs/b
    python experiments/compare.py runs/a runs/b runs/c --out compare.html

Reads the results of the stages from the folders of the runs. If a run lacks a stage, the table has a dash.
Prints the same table.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import torch

from evaluations import print_table
from report_evaluation import KINDS, set_name
from report_parts import (
    NONE,
    SERIES,
    Column,
    Html,
    code,
    element,
    logged,
    note,
    number,
    percent,
    picture,
    save_page,
    section,
    table,
    training,
)
from run_results import Run, read_accuracies, read_evaluation
from run_settings import CHECKPOINTS, LEFT, OWN, differing_settings, stages_of
from vqvae2.data.latents import read_manifest
from vqvae2.nn.contracts import network_class
from vqvae2.storage.checkpoint import read_description
from vqvae2.surroundings import home_path, show_any_name

CURVES = ("val/mse", "val/nll_nats", "val/loss", "train/loss")  # the first that a stage's runs have is drawn
MARKERS = "osD^v"  # one for each round through the colours
ARROWS = {"lower": " ↓", "higher": " ↑"}
Rows = list[list[str]]  # of the table: a name, then a cell a run
Part = tuple[str, Rows]  # with its title
PICTURES = {"Samples": "samples", "Reconstructions": "reconstructions"}  # titles, how files' names begin
UNEQUAL = (
    "The evaluations differ in networks, reference images or settings. (If each run uses its own classifier, "
    "the networks differ.) Figures that depend on what differs cannot be compared."
)


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=home_path, help="folders of runs, such as runs/a runs/b")
    parser.add_argument(
        "--out", type=home_path, help="the page; compare.html in the folder that holds the runs"
    )
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    try:
        runs = read_runs(arguments.runs)
        out = arguments.out or parent_of(arguments.runs) / "compare.html"
        parts = [("Figures", figures(runs)), ("Latents", latents(runs)), ("Time and weights", costs(runs))]
        settings = differing_settings([run.folder for run in runs.values()])
        write_page(runs, parts, settings, out)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_table([["", *runs], *(row for _, rows in parts for row in rows)])
    for warning in warnings(runs):
        print(f"\n{warning}")
    print("\nSettings that differ:" if settings else "\nNo settings differ.")
    if settings:
        print_table([["", *runs], *settings])
    print(f"\nThe page: {out}")


def read_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """The runs by names of their own: their paths from the folder that holds all.

    Raises:
        ValueError: a folder is no run, or named twice, or holds a file of another format.
    """
    found: dict[str, Run] = {}
    for folder in folders:
        if not stages_of(folder):
            raise ValueError(
                f"{folder} is not the folder of a run: no folder in it holds what a stage writes "
                f"({', '.join(LEFT)}). Name folders such as runs/demo."
            )
        name = str(folder.resolve().relative_to(parent_of(folders)))
        if name in found:
            raise ValueError(f"{folder} is named twice. Name each run once.")
        found[name] = read_run(folder)
    return found


def parent_of(folders: Sequence[Path]) -> Path:
    """The innermost folder that holds all of these."""
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def read_run(folder: Path) -> Run:
    """What its evaluation and its classifiers have found, as far as there is any."""
    evaluation = read_evaluation(folder / "eval", folder)
    return Run(folder, [evaluation] if evaluation else [], *read_accuracies(folder))


def figures(runs: Mapping[str, Run]) -> Rows:
    """Of each set of images that an evaluation read, of the run, and of its classifiers."""
    evaluations = [run.evaluations[0] if run.evaluations else None for run in runs.values()]
    read = [evaluation for evaluation in evaluations if evaluation]
    legend = {key: entry for evaluation in read for key, entry in evaluation.legend.items()}
    kinds = {row["key"]: row["kind"] for evaluation in read for row in evaluation.sets}
    sets = [
        {row["key"]: row for row in evaluation.sets} if evaluation else {} for evaluation in evaluations
    ]  # of each run
    rows = []
    for name in sorted(kinds, key=lambda name: KINDS.index(kinds[name])):
        found = [own.get(name, {}) for own in sets]
        rows.append([f"{set_name(name)}: images", *(number(row.get("num_images")) for row in found)])
        rows += rows_of([row.get("figures", {}) for row in found], legend, f"{set_name(name)}: ")
    rows += rows_of([run.figures for run in runs.values()], legend, "")
    for name, found in (
        ("accuracy, trained on samples, %", [run.cas for run in runs.values()]),
        ("accuracy, trained on real images, %", [run.ceiling for run in runs.values()]),
    ):
        if any(found):
            rows.append([name, *(percent(one["real"]["top1"]) if one else NONE for one in found)])
    return rows


def rows_of(found: Sequence[Mapping[str, Any]], legend: Mapping[str, Any], before: str) -> Rows:
    """A row for each figure that a run has; those of each class are left out."""
    keys = [key for key in legend if any(isinstance(own.get(key), int | float) for own in found)]
    names = {key: before + legend[key]["name"] + ARROWS.get(legend[key].get("better"), "") for key in keys}
    return [[name, *(number(own.get(key)) for own in found)] for key, name in names.items()]


def latents(runs: Mapping[str, Run]) -> Rows:
    """The grid of each level, its codebook, and how many images were encoded."""
    found = [
        read_manifest(run.folder / "latents") if (run.folder / "latents/manifest.json").is_file() else None
        for run in runs.values()
    ]
    levels = [{level.name: level for level in one.spec.levels} if one else {} for one in found]
    rows = []
    for name in dict.fromkeys(name for own in levels for name in own):
        shapes = [
            f"{own[name].height} x {own[name].width}, {own[name].num_codes} codes" if name in own else NONE
            for own in levels
        ]
        rows.append([f"latents: {name}", *shapes])
    for split in dict.fromkeys(split for one in found if one for split in one.splits):
        counts = [number(one.num_samples(split) if one else None) for one in found]
        rows.append([f"latents: samples, {split}", *counts])
    return rows


def costs(runs: Mapping[str, Run]) -> Rows:
    """The time that each stage was trained, and the weights of its network."""
    rows = []
    for stage in stages_of(*(run.folder for run in runs.values())):
        folders = [run.folder / stage for run in runs.values()]
        found: list[tuple[str, Callable[[Path], str | None]]] = [
            (f"{stage}: training time, h:mm:ss", training_time),
            (f"{stage}: weights", num_weights),
        ]
        for name, ask in found:
            cells = [ask(folder) for folder in folders]
            if any(cells):
                rows.append([name, *(cell or NONE for cell in cells)])
    return rows


def training_time(stage: Path) -> str | None:
    """Of all steps and their waiting for data; None where the run has not logged it."""
    seconds = logged(Column(stage, "speed/training_s", "", "", False))
    if not seconds:
        return None
    minutes, second = divmod(round(seconds[-1][1]), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def num_weights(stage: Path) -> str | None:
    """Of the network that the stage's checkpoint describes, built without values; codebooks are averages."""
    path = next((stage / name for name in CHECKPOINTS if (stage / name).exists()), None)
    if path is None:
        return None
    facts = read_description(path)
    with torch.device("meta"):
        network = network_class(facts["kind"], facts["architecture"])(**facts["network"])
    return number(sum(weights.numel() for weights in network.parameters()))


def write_page(runs: Mapping[str, Run], parts: Sequence[Part], settings: Rows, out: Path) -> None:
    """Tables, curves and pictures of the runs; what none of them has is left out."""
    sections = [
        section(
            title,
            *(note(text) for text in warnings(runs) if title == "Figures"),
            table(f"{title} of each run; {NONE}: not there.", [title.lower(), *runs], rows),
        )
        for title, rows in parts
        if rows
    ]
    caption = f"Not the same in all runs. {OWN}: the run's own folder; {NONE}: no such stage."
    words = element("div", table(caption, ["setting", *runs], settings), class_="words")
    sections.insert(0, section("Settings that differ", words if settings else note("None.")))
    sections += [curves(runs)]
    sections += [pictures(runs, title, name) for title, name in PICTURES.items()]
    entries = [
        part
        for name, run in runs.items()
        for part in (element("dt", name), element("dd", code(str(run.folder))))
    ]
    header = element("header", element("h1", "Runs side by side"), element("dl", *entries, class_="facts"))
    save_page("Runs side by side", header, [found for found in sections if found], out)


def warnings(runs: Mapping[str, Run]) -> list[str]:
    """Says so where figures have been computed in ways that differ."""
    ways = {run.evaluations[0].conditions() for run in runs.values() if run.evaluations}
    return [UNEQUAL] if len(ways) > 1 else []


def curves(runs: Mapping[str, Run]) -> Html:
    """A chart a stage, a line a run."""
    charts = []
    looks = list(product(MARKERS, SERIES))  # more than anyone tells apart
    looks *= -(-len(runs) // len(looks))
    for stage in stages_of(*(run.folder for run in runs.values())):
        for figure in CURVES:
            columns = [
                Column(
                    run.folder / stage,
                    figure,
                    name,
                    SERIES[i % len(SERIES)],
                    False,
                    MARKERS[i // len(SERIES) % len(MARKERS)],
                )
                for i, (name, run) in enumerate(runs.items())
            ]
            if drawn := training(f"{stage}: {figure}", figure, columns, log=figure.endswith("mse")):
                charts.append(drawn)
                break
    return section("Training", element("div", *charts, class_="charts")) if charts else Html()


def pictures(runs: Mapping[str, Run], title: str, kind: str) -> Html:
    """The latest of each run: the evaluation's, else the sample job's, else the latest of training."""
    shown = []
    for name, run in runs.items():
        grid = [run.folder / "samples/grid.png"] if kind == "samples" else []
        logs = sorted(run.folder.glob(f"*/images/{kind}-*.png"), key=lambda path: path.stat().st_mtime)
        found = [path for _, path in run.images(kind)] + [path for path in grid if path.is_file()]
        found += logs[-1:]
        where = f"{name}: {found[0].relative_to(run.folder)}" if found else f"{name}: {NONE}"
        shown.append(picture(found[0], f"{title}, {name}", where) if found else note(where))
    return section(title, element("div", *shown, class_="pictures"))


if __name__ == "__main__":
    main()
