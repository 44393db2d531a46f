"""One picture of a whole run: reconstructions, samples, curves and the table of figures.

    python experiments/page.py runs/demo

Reads what the jobs of a data set have left in their folders and writes `page.png` beside them.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

LEVELS = ("top", "mid", "bottom")
COLOURS = dict(zip(LEVELS, ("#2a6f97", "#c8553d", "#588157"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a data set's runs, such as runs/demo")
    run = parser.parse_args().run
    report = run / "eval" / "metrics.json"
    if not report.is_file():
        sys.exit(f"error: {report} does not exist. Judge the samples first: make eval-fid CONFIG={run.name}")
    verdict = json.loads(report.read_text())
    rows = table(verdict)
    page = run / "page.png"
    draw(run, rows, page)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows))
    print(f"\nThe picture of it all: {page}")


def table(verdict: dict) -> list[tuple[str, str]]:
    """Names and values of all single figures, as people read them."""
    return [
        (name, f"{value:.4g}")
        for key, name in verdict["names"].items()
        if not isinstance(value := verdict["metrics"][key], list) and "@" not in key  # of the best fractions
    ]


def draw(run: Path, rows: list[tuple[str, str]], page: Path) -> None:
    matplotlib.use("Agg")
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figure = plt.figure(figsize=(12, 12), layout="constrained")
    figure.suptitle(f"VQ-VAE-2: {run.name}", fontsize=15)
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 2])
    left, right = upper.subplots(1, 2, width_ratios=[1, 2.4])
    picture(
        left, last_picture(run / "vqvae"), "held-out images, level by level;\nthe last column is the original"
    )
    picture(right, run / "samples" / "grid.png", "samples, a class a column")
    errors, likelihoods, figures = lower.subplots(1, 3, width_ratios=[1, 1.2, 1.3])
    curve(errors, run / "vqvae", {"train/mse": "train", "val/mse": "held out"}, "#2a6f97")
    errors.set(
        title="autoencoder", xlabel="step", ylabel="mean squared error, pixels in [-1, 1]", yscale="log"
    )
    for level in LEVELS:
        names = {"train/nll_nats": f"{level}, train", "val/nll_nats": f"{level}, held out"}
        curve(likelihoods, run / level, names, COLOURS[level])
    likelihoods.set(title="priors", xlabel="step", ylabel="NLL, nats a code")
    for axes in (errors, likelihoods):
        axes.legend(frameon=False)
    figures.axis("off")
    cells = figures.table([list(row) for row in rows], colWidths=[0.8, 0.2], edges="horizontal", loc="center")
    for (_, column), cell in cells.get_celld().items():
        cell.get_text().set_horizontalalignment("left" if column == 0 else "right")
        cell.set_edgecolor("#cccccc")
    cells.auto_set_font_size(False)
    cells.set_fontsize(7.5)
    cells.scale(1, 1.15)
    aside = page.with_name(page.name + ".part")
    figure.savefig(aside, format="png", dpi=130)
    aside.replace(page)


def last_picture(folder: Path) -> Path | None:
    return max((folder / "images").glob("*.png"), default=None)


def picture(axes: Axes, path: Path | None, title: str) -> None:
    axes.axis("off")
    axes.set_title(title)
    if path is not None and path.is_file():
        axes.imshow(Image.open(path), cmap="gray", interpolation="nearest")


def curve(axes: Axes, folder: Path, names: dict[str, str], colour: str) -> None:
    """Columns of a run's metrics.csv over its steps: the first faint, as it is noisy, the others bold."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, (column, label) in enumerate(names.items()):
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        style = {"alpha": 0.4, "linewidth": 1} if number == 0 else {"marker": "o", "markersize": 4}
        axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)


if __name__ == "__main__":
    main()
