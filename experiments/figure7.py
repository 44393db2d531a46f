"""Figure 7 of the paper: quality against diversity, over temperatures and over rejection fractions.

    python experiments/figure7.py demo --temperatures 0.7 0.8 0.9 1.0
    python experiments/figure7.py cifar10 --temperatures 0.9,1.0 1.0 --fractions 1 0.5 0.25 \\
        --sample-options "--model.rejection_classifier runs/cifar10/classifier/last.ckpt --data.per_class 500"
    python experiments/figure7.py --only-plot runs/demo/eval

Draws samples at each temperature (`lightning predict`, which completes an earlier, unfinished run). Evaluates
all of them in one `lightning test`, prints a table and writes `figure7.png` next to the evaluation's folder.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from evaluations import NONE, print_table, read_evaluation
from paper import DATA, FIGURE_7
from vqvae2.cli.recipes import compose
from vqvae2.evaluation.pictures import Point, curves, figure_key
from vqvae2.surroundings import home_path, show_any_name

CONFIGS = Path("configs")
TEMPERATURES, KEPT, REAL, OTHERS = "#2a6f97", "#c8553d", "#588157", "#555555"
METRICS = ("fid", "fid_star", "is", "precision", "recall")
REFERENCES = {"held_out": ("*", "held-out originals"), "reconstructions": ("s", "their reconstructions")}


def main() -> None:
    show_any_name()
    options = _arguments()
    try:
        if options.only_plot is None:
            folder = draw_and_evaluate(options)
        else:
            folder = options.only_plot if options.only_plot.is_dir() else options.only_plot.parent
        evaluation = read_evaluation(folder)
        picture = folder.parent / "figure7.png"
        plot(evaluation, picture)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_table(table(evaluation))
    figures = "; ".join(f"{row.name}: {row.value:g}" for row in FIGURE_7)
    print(f"\nThe paper's FID, {DATA}, approximate as its text has it ({FIGURE_7[0].source}): {figures}.")
    print(f"The picture: {picture}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="X of configs/X_sample.yaml and configs/X_eval.yaml")
    parser.add_argument(
        "--temperatures",
        nargs="+",
        default=["0.7", "0.8", "0.9", "1.0"],
        help="a number for all levels, or one a level with commas between, top first",
    )
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        help="best fractions of each class to evaluate; the config's if not given",
    )
    parser.add_argument("--sample-options", default="", help="further options of the sample jobs, quoted")
    parser.add_argument("--eval-options", default="", help="further options of the evaluation, quoted")
    parser.add_argument(
        "--only-plot", type=home_path, metavar="EVAL", help="an evaluation's folder; nothing is run"
    )
    options = parser.parse_args()
    if (options.config is None) == (options.only_plot is None):
        parser.error("give a config such as demo, or --only-plot with an evaluation's folder")
    return options


def draw_and_evaluate(options: argparse.Namespace) -> Path:
    """Runs the jobs, one after the other, and ends the program with a job that fails.

    Returns:
        The evaluation's folder.
    """
    for command in commands(options):
        print(shlex.join(["lightning", *command]), flush=True)
        status = subprocess.run([sys.executable, "-m", "vqvae2.cli", *command], check=False).returncode
        if status:
            sys.exit(status)
    return _folder(options.config) / "eval"


def commands(options: argparse.Namespace) -> list[list[str]]:
    """A sample job for each of the temperatures, and one evaluation on all.

    Raises:
        ValueError: there is no such config, or temperatures that its priors cannot have.
    """
    name, folder = options.config, _folder(options.config)
    num_levels = len(compose(CONFIGS / f"{name}_sample.yaml")["model"]["init_args"]["priors"])
    wanted = [_by_level(text, num_levels) for text in options.temperatures]
    candidates = {_candidate(levels): levels for levels in wanted}
    if len(candidates) < len(wanted):
        raise ValueError(f"--temperatures {' '.join(options.temperatures)}: wanted different ones.")
    jobs = []
    for candidate, levels in candidates.items():
        where = str(folder / candidate)
        jobs.append(["predict", "-c", str(CONFIGS / f"{name}_sample.yaml")])
        jobs[-1] += ["--model.temperatures", json.dumps(levels), "--trainer.default_root_dir", where]
        jobs[-1] += ["--trainer.callbacks.init_args.folder", where, *shlex.split(options.sample_options)]
    places = {candidate: str(folder / candidate) for candidate in candidates}
    test = ["test", "-c", str(CONFIGS / f"{name}_eval.yaml"), "--data.samples", json.dumps(places)]
    test += ["--trainer.default_root_dir", str(folder / "eval")]
    if options.fractions is not None:
        test += ["--model.fractions", json.dumps(options.fractions)]
    return [*jobs, test + shlex.split(options.eval_options)]


def _folder(name: str) -> Path:
    evaluated = compose(CONFIGS / f"{name}_eval.yaml")["trainer"]["default_root_dir"]
    return Path(evaluated).parent / "figure7"


def _by_level(text: str, num_levels: int) -> list[float]:
    """ "0.9" or "0.9,1.0" as one temperature a level, top first."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, num_levels) or min(found) <= 0:
        raise ValueError(
            f"--temperatures {text}: wanted a number above 0, or {num_levels}, one a level, as in 0.9,1.0."
        )
    return found * num_levels if len(found) == 1 else found


def _candidate(levels: Sequence[float]) -> str:
    return "t" + "-".join(f"{level}" for level in (levels[:1] if len(set(levels)) == 1 else levels))


def temperatures(candidate: str) -> tuple[float, ...]:
    """What `_candidate` gave this name; none for other samples, which lie on no curve over temperatures."""
    named = re.fullmatch(r"t\d+(\.\d+)?(-\d+(\.\d+)?)*", candidate)
    return tuple(float(level) for level in candidate[1:].split("-")) if named else ()


def _temperatures(point: Point) -> tuple[float, ...]:
    return temperatures(point.label)


def plot(evaluation: dict[str, Any], path: Path) -> None:
    """Writes the figure: left FID and FID* against IS, right precision against recall.

    Raises:
        ValueError: the evaluation holds neither.
    """
    pairs = (("is", ("fid", "fid_star")), ("recall", ("precision",)))
    if not any(_sets(evaluation, x, y) for x, ys in pairs for y in ys):
        raise ValueError(
            "The evaluation has neither FID and IS nor precision and recall of samples. Evaluate samples."
        )
    matplotlib.use("Agg")
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figure, both = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained")
    for axes, (x, ys) in zip(both, pairs, strict=True):
        for y, filled in zip(ys, (True, False), strict=False):
            draw(
                axes,
                evaluation,
                x,
                y,
                filled=filled,
                prefix=f"{_name(evaluation, y)}, " if len(ys) > 1 else "",
            )
        axes.set(xlabel=_name(evaluation, x), ylabel=" and ".join(_name(evaluation, y) for y in ys))
        axes.margins(0.12)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        else:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    aside = path.with_name(path.name + ".part")
    figure.savefig(aside, format="png", dpi=150)
    plt.close(figure)
    aside.replace(path)


def draw(axes: Axes, evaluation: dict[str, Any], x: str, y: str, *, filled: bool, prefix: str) -> None:
    """One metric against another: curves, samples that lie on none, and the real images as a reference."""
    style = {"marker": "o", "markersize": 5, "linestyle": "-" if filled else "--", "linewidth": 1.5}
    style |= {} if filled else {"markerfacecolor": "white"}
    whole = _sets(evaluation, x, y)
    heated = sorted(filter(_temperatures, whole), key=_temperatures)
    if len(heated) > 1:
        axes.plot(*_xy(heated), color=TEMPERATURES, label=f"{prefix}temperatures", **style)
        _annotate(axes, [point._replace(label=point.label[1:]) for point in heated], TEMPERATURES)
    else:
        heated = []
    found = curves(evaluation, x, y)
    kept = rejected(found)
    if kept is not None:
        axes.plot(*_xy(found[kept]), color=KEPT, label=f"{prefix}best fractions of {kept}", **style)
        parts = [point._replace(label=f"{100 * float(point.label):g}%") for point in found[kept]]
        _annotate(axes, parts[1:] if heated else parts, KEPT, below=True)
    alone = [point for point in whole if point not in heated and point.label != kept]
    for point in alone:
        axes.plot(*point[1:], color=OTHERS, **style)
    _annotate(axes, alone, OTHERS)
    for kind, (marker, title) in REFERENCES.items():
        for point in _sets(evaluation, x, y, kind):
            look = style | {"marker": marker, "markersize": 7, "linestyle": "none"}
            axes.plot(*point[1:], color=REAL, label=prefix + title, **look)


def rejected(found: dict[str | None, list[Point]]) -> str | None:
    """Whose fractions are shown: samples at temperature 1, as in the paper, or the last."""
    names = [name for name in found if name is not None]
    return next((name for name in names if set(temperatures(name)) == {1.0}), names[-1] if names else None)


def table(evaluation: dict[str, Any]) -> list[list[str]]:
    """A header, and a row for each set of images."""
    keys = [key for key in (figure_key(evaluation, metric) for metric in METRICS) if key is not None]
    rows = [["set", "images", *(evaluation["legend"][key]["name"] for key in keys)]]
    for row in evaluation["sets"]:
        values = [row["figures"].get(key) for key in keys]
        cells = [NONE if value is None else f"{value:.4g}" for value in values]
        rows.append([row["key"], f"{row['num_images']:,}", *cells])
    return rows


def _sets(evaluation: dict[str, Any], x: str, y: str, kind: str = "samples") -> list[Point]:
    """The whole sets of a kind that have both figures."""
    x_key, y_key = figure_key(evaluation, x), figure_key(evaluation, y)
    return [
        Point(row.get("candidate") or row["key"], row["figures"][x_key], row["figures"][y_key])
        for row in evaluation["sets"]
        if row["kind"] == kind and row.get("fraction", 1) == 1 and {x_key, y_key} <= row["figures"].keys()
    ]


def _name(evaluation: dict[str, Any], metric: str) -> str:
    key = figure_key(evaluation, metric)
    return metric if key is None else evaluation["legend"][key]["name"]


def _xy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.x for point in points], [point.y for point in points]


def _annotate(axes: Axes, points: Sequence[Point], colour: str, *, below: bool = False) -> None:
    look = {"textcoords": "offset points", "fontsize": 7.5, "color": colour, "zorder": 3}
    look |= {"xytext": (-4, -12), "ha": "right"} if below else {"xytext": (5, 5)}
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for point in points:
        axes.annotate(point.label, point[1:], bbox=box, **look)


if __name__ == "__main__":
    main()
