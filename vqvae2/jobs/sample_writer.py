"""Writes what the sample job predicts: shards of images and codes, scores, a picture, a manifest."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import Dataset

from vqvae2.data.latent_shards import CODES
from vqvae2.jobs.chunk_writer import ChunkWriter, Splits
from vqvae2.jobs.inpaint import InpaintRequests
from vqvae2.jobs.prompts import PromptRequests
from vqvae2.jobs.requests import SPLIT
from vqvae2.jobs.sample import SampleModule, Samples
from vqvae2.jobs.sample_grids import StoredImages, inpaint_grid, prompt_grid, sample_grid
from vqvae2.jobs.sampled_codes import sample_key
from vqvae2.jobs.scores import LOG_SCORE, SCORER, SCORES
from vqvae2.pixels import png_bytes, write_png
from vqvae2.storage.job_file import SAMPLES_FORMAT
from vqvae2.storage.shards import (
    MANIFEST,
    Shard,
    index_members,
    npy_bytes,
    read_member,
    write_json,
    write_tar,
)

GRID = "grid.png"

_BLOCK = 512  # bytes, of a tar: a header, then the content in whole blocks


class SampleWriter(ChunkWriter):
    """Writes one WebDataset tar for each chunk; a sample's KEY is its number, and it has the members

        KEY.png  the image, lossless     KEY.cls  its label, as text (none without classes)
        KEY.json seed, number, negative log-likelihood in nats of each level, of kept codes too; with a
                 rejection classifier its log score; with prompts or pictures their number in the folder
        KEY.top.npy … KEY.bottom.npy     uint16 [h, w], the codes

    and beside them `scores.csv` (see `vqvae2.jobs.scores`), `grid.png` and `manifest.json`.

    Args:
        folder: see `ChunkWriter`.
        grid_columns: images in a row of the grid. With prompts, two of them show the prompt and what is kept
            of it; with pictures to repaint, three show the picture, what is hidden, and what its codes decode
            to. null: one column for each class if there are 2 to 20 classes; otherwise 10.
        grid_rows: rows of the grid.
        overwrite: see `ChunkWriter`.
    """

    splits = (SPLIT,)
    outputs = (SCORES, GRID)

    def __init__(
        self,
        folder: str | None = None,
        *,
        grid_columns: int | None = None,
        grid_rows: int = 10,
        overwrite: bool = False,
    ) -> None:
        super().__init__(folder, overwrite=overwrite)
        if min(grid_rows if grid_columns is None else grid_columns, grid_rows) < 1:
            raise ValueError(f"The grid is {grid_columns} by {grid_rows}, wanted at least one image.")
        self.grid_columns = grid_columns
        self.grid_rows = grid_rows

    def identity(self, trainer: L.Trainer, module: SampleModule) -> dict[str, Any]:
        data = trainer.datamodule
        return {
            "job": SAMPLES_FORMAT,
            **module.identity(),
            "precision": trainer.precision,
            **data.identity(),
            "chunk_size": data.chunk_size,
        }

    def file(self, split: str, number: int) -> str:
        return f"{number:06d}.tar"

    def sample_bytes(self, trainer: L.Trainer, module: SampleModule) -> int:
        spec = module.spec
        codes = [level.height * level.width * CODES.itemsize for level in spec.levels]
        members = [1, 1, *codes, *([1] if spec.num_classes else [])]  # picture, facts, codes, label
        return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in members)

    def count_samples(self, path: Path, dataset: Dataset, samples: range, module: SampleModule) -> int:
        found = index_members(path)
        keys = [sample_key(number) for number in samples]
        if list(found) != keys:
            raise ValueError(f"it holds {len(found)} samples, wanted the {len(keys)} from {keys[0]} on.")
        wanted = {"png", "json", *(f"{name}.npy" for name in module.level_names)}
        if module.spec.num_classes:
            wanted.add("cls")
        if any(members.keys() != wanted for members in found.values()):
            raise ValueError(f"it lacks some of {', '.join(sorted(wanted))}.")
        return len(found)

    def write_chunk(self, split: str, number: int, predictions: list[Samples], module: SampleModule) -> Shard:
        records = [record for samples in predictions for record in _records(samples, module)]
        return write_tar(self.folder, self.file(split, number), records, num_samples=len(records))

    def finish(self, splits: Splits, trainer: L.Trainer, module: SampleModule) -> None:
        (shards,) = splits.values()
        data = trainer.datamodule
        write_scores(self.folder, shards, module.level_names)
        images = StoredImages(self.folder, shards, data.chunk_size)
        size = {"columns": self.grid_columns, "rows": self.grid_rows}
        where: dict[str, Any] = {}
        if isinstance(data, PromptRequests):
            where = {"folder": str(data.folder)}
            grid = prompt_grid(images, module, data, **size)
        elif isinstance(data, InpaintRequests):
            where = {"folder": data.pictures, "masks_folder": data.masks, "pictures": data.names}
            grid = inpaint_grid(images, module, data, **size)
        else:
            grid = sample_grid(images, data.pattern(module.spec.num_classes), **size)
        write_png(self.folder / GRID, grid)
        content = {
            "format": SAMPLES_FORMAT,
            "num_samples": images.num_images,
            "num_classes": module.spec.num_classes,
            "classes": list(module.classes),
            "autoencoder": module.spec.autoencoder,
            "latents": module.spec.to_dict(),
            "checkpoints": module.checkpoints,
            SCORER: module.rejection_classifier_path,
            "seed": module.seed,
            "draws": {
                name: how.described() for name, how in zip(module.level_names, module.draws, strict=True)
            },
            "approximate": bool(module.approximations),
            "request": {**data.identity(), **where},
            "shards": [vars(shard) for shard in shards],
        }
        write_json(self.folder / MANIFEST, content)

    def teardown(self, trainer: L.Trainer, pl_module: SampleModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if trainer.is_global_zero and pl_module.approximations:
            print(f"Approximate, not what the priors have learned: {', '.join(pl_module.approximations)}.")


def write_scores(folder: Path, shards: Sequence[Shard], level_names: Sequence[str]) -> None:
    """Writes `scores.csv` of what the shards hold, aside, and moves it to its place."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["index", "label", LOG_SCORE, *(f"nll_{name}" for name in level_names)])
    for shard in shards:
        path = folder / shard.file
        for members in index_members(path).values():
            facts = json.loads(read_member(path, members["json"]))
            label = int(read_member(path, members["cls"])) if "cls" in members else -1
            nll = [facts["nll_nats"].get(name, "") for name in level_names]
            table.writerow([facts["image"], label, facts.get(LOG_SCORE, ""), *nll])
    part = folder / f"{SCORES}.part"
    part.write_text(text.getvalue(), encoding="utf-8", newline="")
    part.replace(folder / SCORES)


def _records(samples: Samples, module: SampleModule) -> Iterator[dict[str, Any]]:
    for row, (image, label, index) in enumerate(
        zip(samples.images, samples.labels, samples.index, strict=True)
    ):
        levels = dict(zip(module.level_names, samples.levels, strict=True))
        with_nll = {name: level.nll_nats for name, level in levels.items() if level.nll_nats is not None}
        nll = {name: values[row].item() for name, values in with_nll.items()}
        facts = {"seed": module.seed, "image": index.item(), "nll_nats": nll}
        if samples.log_scores is not None:
            facts[LOG_SCORE] = samples.log_scores[row].item()
        if samples.prompts is not None:
            facts["prompt"] = samples.prompts[row].item()
        record = {"__key__": sample_key(index), "png": png_bytes(image)}
        if label >= 0:
            record["cls"] = str(label.item()).encode()
        record["json"] = json.dumps(facts).encode()
        codes = {
            f"{name}.npy": npy_bytes(level.codes[row].numpy().astype(CODES)) for name, level in levels.items()
        }
        yield {**record, **codes}
