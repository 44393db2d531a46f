"""The pictures of an evaluation, written to the run folder; in W&B also tables, curves and a summary.

samples                 one class per column; samples-CANDIDATE where several candidates are evaluated
reconstructions         held-out images level by level, the original last
neighbours-features     one sample per row, then its nearest training images by a network's features
neighbours-pixels       the same by pixels
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import make_grid

from vqvae2.evaluation.data_module import EvaluationDataModule, spread
from vqvae2.evaluation.results import single_figures
from vqvae2.pixels import from_uint8
from vqvae2.runs.log_pictures import log_picture
from vqvae2.runs.loggers import WandbLogger
from vqvae2.runs.previews import level_by_level

GREY = 128  # a cell without an image
SETS, RUN = "evaluation/sets", "evaluation/run"  # W&B's tables
CURVES = {  # W&B's plots: title, the metric along x, those along y
    "evaluation/fid-is": ("FID and FID* against IS", "is", ("fid", "fid_star")),
    "evaluation/precision-recall": ("precision against recall", "recall", ("precision",)),
}
NEIGHBOURS = {"features": "neighbours-features", "pixels": "neighbours-pixels"}


class EvaluationPictures(L.Callback):
    """Draws and logs the pictures of an `EvaluationModule` when its figures are computed.

    The top of this file lists them. Only the first rank draws, because the networks are not sharded. Images
    that cannot be read are left out; the evaluation counts them.

    Args:
        columns: at most so many classes of samples, evenly spread over all; without labels, images per row.
        rows: at most so many samples of each class, and so many reconstructions.
    """

    def __init__(self, columns: int = 10, rows: int = 8) -> None:
        if min(columns, rows) < 1:
            raise ValueError(f"The pictures are {columns} by {rows}, wanted at least one image.")
        self.columns = columns
        self.rows = rows

    @torch.no_grad()
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not in on_test_epoch_end, which callbacks go through before the module.
        if not trainer.is_global_zero:
            return
        for name, picture in self.pictures(trainer.datamodule, pl_module):
            log_picture(trainer, name, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_evaluation(logger, pl_module.evaluation, trainer.global_step)

    def pictures(self, data: EvaluationDataModule, module: L.LightningModule) -> Iterator[tuple[str, Tensor]]:
        """Names and pictures, uint8 [C, height, width], of what was evaluated."""
        for name in data.candidates:
            shown = samples_by_class(data, name, columns=self.columns, rows=self.rows)
            if shown is not None:
                yield "samples" if len(data.candidates) == 1 else f"samples-{name}", shown
        if module.autoencoder_network is not None and "held_out" in data.test_names:
            some = spread(data.num_test_samples("held_out"), self.rows)
            if images := list(readable(data, "held_out", some)):
                originals = from_uint8(torch.stack(images).to(module.device))
                yield "reconstructions", level_by_level(module.autoencoder_network, originals)
        for measure, name in NEIGHBOURS.items():
            rows = neighbour_rows(data, module.evaluation.get("neighbours", []), measure)
            if rows:
                yield name, beside_neighbours(rows)


def readable(data: EvaluationDataModule, name: str, indices: Iterable[int]) -> Iterator[Tensor]:
    """Those of some images of a test loader that can be read, uint8 [C, H, W]."""
    for index in indices:
        try:
            image = data.picture(name, int(index))
        except ValueError:
            continue
        yield image


def samples_by_class(data: EvaluationDataModule, name: str, *, columns: int, rows: int) -> Tensor | None:
    """A candidate's first samples of some classes, a class a column; unlabelled samples row by row.

    Returns:
        uint8 [C, height, width]; None where no image can be read.
    """
    labels = data.labels_of(name)
    classes = labels[labels >= 0].unique()
    if not len(classes):
        images = list(islice(readable(data, name, range(len(labels))), columns * rows))
        return make_grid(torch.stack(images), nrow=columns, padding=1) if images else None
    of_classes = [
        list(islice(readable(data, name, (labels == classes[i]).nonzero().flatten()), rows))
        for i in spread(len(classes), columns)
    ]
    height = max(map(len, of_classes))
    if height == 0:
        return None
    empty = torch.full_like(next(image for images in of_classes for image in images), GREY)
    padded = [images + [empty] * (height - len(images)) for images in of_classes]
    cells = [images[row] for row in range(height) for images in padded]
    return make_grid(torch.stack(cells), nrow=len(of_classes), padding=1)


def neighbour_rows(
    data: EvaluationDataModule, queries: Sequence[dict[str, Any]], measure: str
) -> list[list[Tensor]]:
    """For each query that can be read: it and its neighbours by `measure`, the nearest first."""
    rows = []
    for query in queries:
        candidate = query["set"].partition("@")[0]
        row = list(readable(data, candidate, [query["index"]]))
        if row and query.get(measure):
            rows.append(row + list(readable(data, "real", [near["index"] for near in query[measure]])))
    return rows


def beside_neighbours(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """uint8 [C, height, width]: the first image of each row, a white gap, the others of the row."""
    most = max(len(row) for row in rows) - 1
    queries = make_grid(torch.stack([row[0] for row in rows]), nrow=1, padding=1)
    empty = torch.full_like(rows[0][0], GREY)
    others = [image for row in rows for image in [*row[1:], *[empty] * (most - len(row) + 1)]]
    if not others:
        return queries
    gap = torch.full((*queries.shape[:2], max(rows[0][0].shape[2] // 4, 2)), 255, dtype=torch.uint8)
    return torch.cat([queries, gap, make_grid(torch.stack(others), nrow=most, padding=1)], 2)


class Point(NamedTuple):
    """A set of images on a curve."""

    label: str
    x: float
    y: float


def figure_key(evaluation: dict[str, Any], metric: str) -> str | None:
    """Under which the figures of a metric are: it may name a network too. None if there are none."""
    keys = (key for key, entry in evaluation["legend"].items() if entry["metric"] == metric)
    return next(keys, None)


def curves(evaluation: dict[str, Any], x: str, y: str) -> dict[str | None, list[Point]]:
    """Quality against diversity: one metric against another, as figure 7 of the paper has it.

    Args:
        evaluation: the content of `metrics.json`.
        x: a metric, such as `is`.
        y: a metric, such as `fid`.

    Returns:
        The points of each curve. A candidate's name stands for the fractions of it that were kept, None for
        the candidates, each whole. Curves of fewer than two points are left out.
    """
    x_key, y_key = figure_key(evaluation, x), figure_key(evaluation, y)
    found: dict[str | None, list[Point]] = {None: []}
    for row in evaluation["sets"]:
        figures = row["figures"]
        if row["kind"] != "samples" or figures.get(x_key) is None or figures.get(y_key) is None:
            continue
        name, at = row["candidate"], (figures[x_key], figures[y_key])
        found.setdefault(name, []).append(Point(f"{row['fraction']:g}", *at))
        if row["fraction"] == 1:
            found[None].append(Point(name, *at))
    return {name: points for name, points in found.items() if len(points) > 1}


def log_evaluation(logger: WandbLogger, evaluation: dict[str, Any], step: int) -> None:
    """Sends an evaluation's figures to W&B: two tables, the curves that there are, and the run's summary."""
    import wandb

    legend = {key: entry["name"] for key, entry in evaluation["legend"].items()}
    run = [[legend.get(key, key), value] for key, value in evaluation["figures"].items()]
    logged = {
        SETS: wandb.Table(*_sets_table(evaluation, legend)),
        RUN: wandb.Table(["figure", "value"], run),
        "trainer/global_step": step,
    }
    for name, (title, x, ys) in CURVES.items():
        lines = {
            f"{legend[figure_key(evaluation, y)]} of {curve or 'all candidates'}": points
            for y in ys
            for curve, points in curves(evaluation, x, y).items()
        }
        if lines:
            logged[name] = wandb.plot.line_series(
                [[point.x for point in points] for points in lines.values()],
                [[point.y for point in points] for points in lines.values()],
                keys=list(lines),
                title=title,
                xname=legend[figure_key(evaluation, x)],
            )
    logger.experiment.log(logged)
    logger.experiment.summary.update(single_figures(evaluation))


def _sets_table(evaluation: dict[str, Any], legend: dict[str, str]) -> tuple[list[str], list[list[Any]]]:
    """Columns, and a row a set; figures class by class have no place in it."""
    used = {
        key
        for row in evaluation["sets"]
        for key, value in row["figures"].items()
        if not isinstance(value, list)
    }
    keys = [key for key in legend if key in used]
    rows = [
        [row["key"], row["num_images"], *(row["figures"].get(key) for key in keys)]
        for row in evaluation["sets"]
    ]
    return ["set", "images", *(legend[key] for key in keys)], rows
