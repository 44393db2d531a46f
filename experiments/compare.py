"""Several runs side by side, as tables and as one page: settings that differ, figures, curves, pictures.

    python experiments/compare.py runs/demo runs/k128
    make compare RUNS="runs/demo runs/k128"

A run is the folder of a recipe's jobs. Where a run lacks a job, the table has a gap.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import yaml

from report_parts import (
    NONE,
    SERIES,
    Column,
    Html,
    document,
    element,
    note,
    number,
    picture,
    section,
    table,
    training,
)
from verdicts import print_table, read_verdict
from vqvae2.runs.checkpoint_files import read_facts
from vqvae2.storage.checkpoint import load_network, read_description
from vqvae2.surroundings import home_path, show_any_name

CURVES = {  # of a job's metrics.csv: the first column that it has
    "vqvae": ("val/mse", "mean squared error", True),
    "top": ("val/nll_nats", "NLL, nats a code", False),
    "mid": ("val/nll_nats", "NLL, nats a code", False),
    "bottom": ("val/nll_nats", "NLL, nats a code", False),
    "classifier": ("val/accuracy", "accuracy", False),
}
PICTURES = {"Samples": "samples/grid.png", "Reconstructions": "vqvae/images/reconstructions-*.png"}

Rows = list[list[str]]


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=home_path, nargs="+", help="folders such as runs/demo")
    parser.add_argument("--out", type=home_path, help="the page; compare.html beside the first run")
    options = parser.parse_args()
    matplotlib.use("Agg")
    out = options.out or options.runs[0].resolve().parent / "compare.html"
    try:
        runs = names_of(options.runs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    settings, figures, costs = (rows(runs) for rows in (differing_settings, figures_of, costs_of))
    write_page(runs, settings, figures, costs, out)
    for rows in (settings, figures, costs):
        if len(rows) > 1:
            print_table(rows)
            print()
    print(f"The page: {out}")


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """The runs by short names that differ.

    Raises:
        ValueError: a folder is given twice, or holds no run.
    """
    runs: dict[str, Path] = {}
    for folder in folders:
        if not any(folder.glob("*/config.yaml")):
            raise ValueError(f"{folder} holds no run: none of its folders has a config.yaml.")
        name = folder.resolve().name
        name = str(folder) if name in runs else name
        if name in runs:
            raise ValueError(f"{folder} is given twice.")
        runs[name] = folder
    return runs


def differing_settings(runs: Mapping[str, Path]) -> Rows:
    """A row for each setting of a job that is not the same in all runs that have the job."""
    jobs = {
        path.parent.name: None for folder in runs.values() for path in sorted(folder.glob("*/config.yaml"))
    }
    rows = [["setting", *runs]]
    for job in jobs:
        found = {name: dict(_settings(folder, job)) for name, folder in runs.items()}
        there = [settings for settings in found.values() if settings]
        for key in dict.fromkeys(key for settings in there for key in settings):
            if any(settings.get(key) != there[0].get(key) for settings in there):
                values = [str(each.get(key, NONE)) if each else NONE for each in found.values()]
                rows.append([f"{job}: {key}", *values])
    return rows


def _settings(folder: Path, job: str) -> Iterator[tuple[str, Any]]:
    """The settings in a job's config.yaml by dotted names; paths below the run's folder begin with $run."""
    path = folder / job / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    places = [str(folder), str(folder.resolve()), *filter(None, [content.pop("run", None)])]

    def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(name if key == "init_args" else f"{name}.{key}".lstrip("."), inner)
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from flat(f"{name}.{i}", inner)
        else:
            yield name, _below_run(value, places) if isinstance(value, str) else value

    yield from flat("", content)


def _below_run(value: str, places: Sequence[str]) -> str:
    for run in places:
        if value == run or value.startswith(f"{run}/"):
            return "$run" + value.removeprefix(run)
    return value


def figures_of(runs: Mapping[str, Path]) -> Rows:
    """A row for each figure of the evaluations: of the run, and of each set of images."""
    columns: dict[str, dict[str, float]] = {}
    for name, folder in runs.items():
        try:
            content = read_verdict(folder)
        except ValueError:  # not evaluated: a gap
            columns[name] = {}
            continue
        names = {key: entry["name"] for key, entry in content["legend"].items()}
        columns[name] = {names[key]: value for key, value in content["figures"].items()}
        for found in content["sets"]:
            single = {key: value for key, value in found["figures"].items() if not isinstance(value, list)}
            columns[name] |= {f"{found['key']}: {names[key]}": value for key, value in single.items()}
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return [["figure", *runs], *([row, *(number(columns[name].get(row)) for name in runs)] for row in rows)]


def costs_of(runs: Mapping[str, Path]) -> Rows:
    """Weights, steps and seconds of training of each job that trains."""
    rows = [["cost", *runs]]
    for job in CURVES:
        found = [_cost(folder / job) for folder in runs.values()]
        for i, what in enumerate(("weights", "steps", "seconds of training, about")):
            if any(cost[i] is not None for cost in found):
                rows.append([f"{job}: {what}", *(number(cost[i]) for cost in found)])
    return rows


def _cost(folder: Path) -> tuple[int | None, int | None, int | None]:
    path = folder / "last.ckpt"
    if not path.exists():  # not trained: a gap
        return None, None, None
    network = load_network(path, read_description(path)["kind"]).network
    seconds = _seconds(folder)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return weights, read_facts(path)["global_step"], seconds and round(seconds)


def _seconds(folder: Path) -> float | None:
    """From the logged speeds: samples of each span of steps over samples a second."""
    config, log = folder / "config.yaml", folder / "metrics.csv"
    if not config.is_file() or not log.is_file():
        return None
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    samples = settings["data"].get("init_args", {}).get("batch_size", 0)
    samples *= settings["trainer"].get("accumulate_grad_batches") or 1
    with log.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("speed/samples_per_s")]
    spans = pairwise([-1, *(int(row["step"]) for row in rows)])
    speeds = [float(row["speed/samples_per_s"]) for row in rows]
    found = [
        (end - begin) * samples / speed for (begin, end), speed in zip(spans, speeds, strict=True) if speed
    ]
    return sum(found) or None


def write_page(runs: Mapping[str, Path], settings: Rows, figures: Rows, costs: Rows, out: Path) -> None:
    """Writes the page aside and moves it to its place."""
    colours = dict(zip(runs, SERIES, strict=False))
    charts = []
    for job, (column, unit, log) in CURVES.items():
        lines = [
            Column(folder / job, column, name, colours.get(name, SERIES[-1]), False)
            for name, folder in runs.items()
        ]
        if (chart := training(f"{job}: {column}, held out", unit, lines, log=log)) is not None:
            charts.append(chart)
    sections = [
        section("Settings that differ", _table("Of jobs that several runs have", settings)),
        section("Figures", _table("The evaluations", figures)),
        section(
            "Curves", element("div", *charts, class_="charts") if charts else note("No run was trained.")
        ),
        *(section(title, _pictures(runs, pattern)) for title, pattern in PICTURES.items()),
        section("Costs", _table("Of jobs that train", costs)),
    ]
    title = " and ".join(runs)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = document(title, style, element("header", element("h1", title)), *sections)
    aside = out.with_name(out.name + ".part")
    aside.write_text(page, encoding="utf-8")
    aside.replace(out)


def _table(caption: str, rows: Rows) -> Html:
    header, *body = rows
    return table(caption, header, body) if body else note("Nothing.")


def _pictures(runs: Mapping[str, Path], pattern: str) -> Html:
    found = {name: sorted(folder.glob(pattern)) for name, folder in runs.items()}
    shown = [
        picture(paths[-1], name, name) if paths else note(f"{name}: none") for name, paths in found.items()
    ]
    return element("div", *shown, class_="pictures")


if __name__ == "__main__":
    main()
