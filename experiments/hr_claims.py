"""HR-VQVAE's claims: at equal bits, networks and steps, does it err less, and do large codebooks stay alive?

    python experiments/hr_claims.py --seeds 0 1 2
    python experiments/hr_claims.py --variants flat residual linked --sizes 4 8 16
    python experiments/hr_claims.py --train PICTURES --holdout 0.1 --network factor=4 code_dim=32

Every cell (a variant, a size m of L levels, a seed) is a run of `lightning fit` in a folder of its own; cells
that are done are not run again. Writes a table (.csv) and a picture (.png), and prints the table.

- flat: one codebook of m^L codes (a VQ-VAE of one level).
- residual: L levels of m codes, the same for all vectors.
- linked: L levels of linked codebooks (HR-VQVAE); -full and -none: other gradients of the residual.
- -revived: where codes that are hardly used move to vectors of the batch (`revive_below`, of no paper).
- vqvae2: three levels of m^L codes on grids of 1, 1/2 and 1/4 the side (table 7). Not equal bits.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
import yaml
from matplotlib.axes import Axes

from configured import CONFIGS
from evaluations import NONE, print_table
from hr_cells import MEASURED, NETWORK, VARIANTS, Cell, batches, finish, model, open_images, work
from timing import compare, describe_machine
from vqvae2.cli.recipes import compose
from vqvae2.surroundings import home_path, show_any_name

TIMED_IMAGES = 64
GRIDS = ("top", "mid", "bottom")  # by whose names figures end
COLOURS = ("#2a6f97", "#61a5c2", "#588157", "#c8553d", "#e09f3e", "#7b5ea7", "#8d5b4c", "#555555")
Row = dict[str, Any]  # variant, m, leaves, seeds, and of each figure its mean and standard deviation


def main() -> None:
    show_any_name()
    options = arguments()
    torch.set_num_threads(options.threads)
    try:
        cells, figures = run(options)
        rows = summary(figures)
        path = options.out / f"{'growth' if len(options.sizes) > 1 else 'claims'}.csv"
        write_csv(rows, path)
        plot(rows, figures, path.with_suffix(".png"))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{describe_machine()}; {len(cells)} runs of {options.steps:,} steps of {options.batch} images")
    print_table(printed(rows))
    print(
        f"\nTimes are of {TIMED_IMAGES} images, or of all held-out ones if there are fewer. Mean ± standard "
        "deviation over seeds. grid / grid: top first."
    )
    if any(row["variant"] == "vqvae2" for row in rows):
        print("vqvae2 spends other bits and has other weights: see those columns; it is no equal comparison.")
    print(f"The table: {path}\nThe picture: {path.with_suffix('.png')}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="cifar10", help="X of configs/X_vqvae.yaml: its images")
    parser.add_argument("--train", help="location of other training images")
    parser.add_argument("--val", help="location of the held-out images, with --train")
    parser.add_argument("--holdout", type=float, default=0.0, help="with --train: the part that is held out")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="OPTION=VALUE", help="not as the recipe: image_size=64"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[8], metavar="M", help="m of each level")
    parser.add_argument("--depth", type=int, default=3, metavar="L", help="levels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at first; falls as a cosine to 0")
    parser.add_argument(
        "--network", nargs="+", default=[], metavar="OPTION=VALUE", help="not as table 6: hidden=32 beta=1"
    )
    parser.add_argument("--done", action="store_true", help="run nothing: the table of cells that are done")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9, help="of the timing")
    parser.add_argument("--out", type=home_path, default=Path("runs/hr_claims"), help="folder of the runs")
    options = parser.parse_args()
    if options.train is None and (options.val or options.holdout):
        parser.error("--val and --holdout go with --train")
    for option in options.network:
        if option.partition("=")[0] not in NETWORK:
            parser.error(f"--network {option}: wanted one of {', '.join(NETWORK)}, = and a value")
    return options


def run(options: argparse.Namespace) -> tuple[list[Cell], dict[Cell, dict[str, float]]]:
    """All cells, each seed's before those of the next, and their figures.

    Raises:
        ValueError: a cell was run with other settings, none is done, or the recipe is not there.
    """
    pairs = product(options.seeds, options.sizes, options.variants)
    cells = [Cell(variant, branch, options.depth, seed) for seed, branch, variant in pairs]
    configs = {cell: config(cell, options) for cell in cells}
    if options.done:
        cells = [cell for cell in cells if (cell.folder(options.out) / MEASURED).is_file()]
    if not cells:
        raise ValueError(f"No cell in {options.out} is done yet. Leave --done out.")
    figures = {}
    for number, cell in enumerate(cells, 1):
        if not options.done:
            print(f"{number} of {len(cells)}: {cell.folder(options.out)}", flush=True)
        figures[cell] = dict(finish(cell, configs[cell], options.out))
    data = open_images(configs[cells[0]], batch_size=TIMED_IMAGES)  # the same held-out images in all cells
    images = next(iter(batches(data))).images
    cases = {(cell, name): call for cell in cells for name, call in work(cell, options.out, images).items()}
    for (cell, name), elapsed in compare(cases, repeats=options.repeats).items():
        figures[cell][f"{name}_ms"] = 1e3 * elapsed
    return cells, figures


def config(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Of the cell's `lightning fit`: the recipe's images, and the variant's network."""
    recipe = compose(CONFIGS / f"{options.recipe}_vqvae.yaml")
    images = recipe["data"]["init_args"] | {"batch_size": options.batch, "seed": cell.seed, "num_workers": 0}
    if options.train is not None:
        images |= {"train": options.train, "val": options.val, "holdout": options.holdout}
    images |= assigned(options.images)
    schedule = {
        "class_path": "vqvae2.training.schedules.Cosine",
        "init_args": {"learning_rate": options.learning_rate},
    }
    return {
        "seed_everything": cell.seed,
        "trainer": {
            "devices": 1,
            "max_steps": options.steps,
            "max_epochs": -1,
            "check_val_every_n_epoch": None,
            "val_check_interval": options.steps,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": min(50, options.steps),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "checkpoint": {"every_minutes": 1.0},
        "model": model(cell, NETWORK | assigned(options.network), schedule),
        "data": {"class_path": recipe["data"]["class_path"], "init_args": images},
    }


def assigned(options: Sequence[str]) -> dict[str, Any]:
    """The values of OPTION=VALUE, as YAML has them."""
    pairs = (option.partition("=") for option in options)
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def summary(figures: Mapping[Cell, Mapping[str, float]]) -> list[Row]:
    """A row for each variant and size; the standard deviation (n − 1) is None for a single seed."""
    rows = []
    for variant, branch, depth in dict.fromkeys(cell[:3] for cell in figures):
        found = [own for cell, own in figures.items() if cell[:3] == (variant, branch, depth)]
        row: Row = {"variant": variant, "m": branch, "leaves": branch**depth, "seeds": len(found)}
        for name in found[0]:
            values = [own[name] for own in found]
            row[name] = statistics.fmean(values)
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        row["mse_to_flat"] = to_flat(figures, variant, branch, depth)
        rows.append(row)
    return rows


def to_flat(
    figures: Mapping[Cell, Mapping[str, float]], variant: str, branch: int, depth: int
) -> float | None:
    """The error over that of the flat codebook, of the seeds that both have."""
    cells = [cell for cell in figures if cell[:3] == (variant, branch, depth)]
    pairs = [(cell, cell._replace(variant="flat")) for cell in cells]
    both = [(figures[cell]["mse"], figures[flat]["mse"]) for cell, flat in pairs if flat in figures]
    return sum(own for own, _ in both) / sum(flat for _, flat in both) if both else None


def write_csv(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def printed(rows: Sequence[Row]) -> list[list[str]]:
    """A header, and a row each."""
    header = ["variant", "m", "leaves", "seeds", "MSE", "to flat's", "perplexity", "alive", "of"]
    header += ["search, ms", "decode, ms", "bits an image", "weights"]
    table = [header]
    for row in rows:
        ratio = row["mse_to_flat"]
        table.append(
            [
                row["variant"],
                *(f"{row[name]:,}" for name in ("m", "leaves", "seeds")),
                spread(row, "mse", ".5f"),
                NONE if ratio is None else f"{ratio:.2f}",
                *(by_grid(row, name, ".0f") for name in ("perplexity", "alive")),
                " / ".join(f"{row[name]:.0f}" for name in of_grids(row, "codes")),
                *(spread(row, name, ".1f") for name in ("search_ms", "decode_ms")),
                *(f"{row[name]:,.0f}" for name in ("bits", "weights")),
            ]
        )
    return table


def of_grids(row: Row, name: str) -> list[str]:
    return [f"{name}_{grid}" for grid in GRIDS if f"{name}_{grid}" in row]


def by_grid(row: Row, name: str, digits: str) -> str:
    return " / ".join(spread(row, grid, digits) for grid in of_grids(row, name))


def spread(row: Row, name: str, digits: str) -> str:
    std = row[f"{name}_std"]
    return f"{row[name]:{digits}}" + ("" if std is None else f" ± {std:{digits}}")


def plot(rows: Sequence[Row], figures: Mapping[Cell, Mapping[str, float]], path: Path) -> None:
    """Error, share of codes that occur, and perplexity: by variant, or over the leaves if sizes differ."""
    matplotlib.use("Agg")
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    titles = {
        "mse": "held-out MSE, pixels in [-1, 1]",
        "alive": "share of codes alive",
        "perplexity": "perplexity / codes",
    }
    grows = len({row["m"] for row in rows}) > 1
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        (draw_growth if grows else draw_variants)(ax, figures, name)
        ax.set(title=title, ylim=(0, None))
    if grows:
        axes[0].legend(frameon=False)
    aside = path.with_name(path.name + ".part")
    figure.savefig(aside, format="png", dpi=150)
    plt.close(figure)
    aside.replace(path)


def draw_growth(ax: Axes, figures: Mapping[Cell, Mapping[str, float]], name: str) -> None:
    """A line a variant, through the means over seeds."""
    for colour, variant in zip(COLOURS, VARIANTS, strict=True):
        points: dict[int, list[float]] = {}
        for cell, own in figures.items():
            if cell.variant == variant:
                points.setdefault(cell.num_codes, []).append(value(own, name))
        if points:
            means = [statistics.fmean(points[leaves]) for leaves in sorted(points)]
            ax.plot(sorted(points), means, "o-", color=colour, label=variant)
    ax.set(xscale="log", xlabel="codes, m^L")


def draw_variants(ax: Axes, figures: Mapping[Cell, Mapping[str, float]], name: str) -> None:
    """A mark a seed, a bar for the mean."""
    variants = list(dict.fromkeys(cell.variant for cell in figures))
    for place, variant in enumerate(variants):
        values = [value(own, name) for cell, own in figures.items() if cell.variant == variant]
        colour = COLOURS[list(VARIANTS).index(variant)]
        ax.bar(place, statistics.fmean(values), color=colour, alpha=0.35)
        ax.plot([place] * len(values), values, "o", color=colour, markersize=4)
    ax.set_xticks(range(len(variants)), variants, rotation=30, ha="right")


def value(own: Mapping[str, float], name: str) -> float:
    """The error, or what grids together have of their codes."""
    if name == "mse":
        return own["mse"]
    grids = [grid for grid in GRIDS if f"{name}_{grid}" in own]
    return sum(own[f"{name}_{grid}"] for grid in grids) / sum(own[f"codes_{grid}"] for grid in grids)


if __name__ == "__main__":
    main()
