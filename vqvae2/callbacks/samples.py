"""Writes what the sample job predicts: shards of images and codes, a manifest, and a picture to look at."""

import json
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torchvision.utils import make_grid

from vqvae2.callbacks.chunks import ChunkWriter, Splits
from vqvae2.data.decode import to_pixels
from vqvae2.data.latent_shards import CODES
from vqvae2.data.shards import MANIFEST, Shard, npy_bytes, write_json, write_tar
from vqvae2.data.sources import open_source
from vqvae2.modules.sample import SampleModule, Samples
from vqvae2.pixels import png_bytes, write_png


class SampleWriter(ChunkWriter):
    """One WebDataset tar a chunk; sample KEY is its number and has the members

        KEY.png  the image, lossless     KEY.cls  its label, as text (none without classes)
        KEY.json seed, number and negative log-likelihood in nats of each level
        KEY.top.npy … KEY.bottom.npy     uint16 [h, w], the codes

    Args:
        folder: for the shards, `manifest.json` and `grid.png`.
        grid_columns: images in a row of the grid; of a model with classes each column is a class.
        grid_rows: its rows.
    """

    def __init__(self, folder: str, *, grid_columns: int = 10, grid_rows: int = 10) -> None:
        super().__init__(folder)
        if min(grid_columns, grid_rows) < 1:
            raise ValueError(f"The grid is {grid_columns} by {grid_rows}, wanted at least one image.")
        self.grid_columns = grid_columns
        self.grid_rows = grid_rows

    def write_chunk(self, split: str, number: int, predictions: list[Samples], module: SampleModule) -> Shard:
        records = [
            record for samples in predictions for record in _records(samples, module.level_names, module.seed)
        ]
        return write_tar(self.folder, f"{number:06d}.tar", records, num_samples=len(records))

    def finish(self, splits: Splits, trainer: L.Trainer, module: SampleModule) -> None:
        (shards,) = splits.values()
        write_png(self.folder / "grid.png", self._grid(shards))
        content = {
            "format": "vqvae2 samples",
            "num_samples": sum(shard.num_samples for shard in shards),
            "num_classes": module.num_classes,
            "autoencoder": module.spec.autoencoder,
            "checkpoints": module.checkpoints,
            "seed": module.seed,
            "temperatures": module.temperatures,
            "shards": [vars(shard) for shard in shards],
        }
        write_json(self.folder / MANIFEST, content)

    def _grid(self, shards: tuple[Shard, ...]) -> torch.Tensor:
        """The first images, uint8 [C, H, W]."""
        source = open_source(str(self.folder / shards[0].file))
        count = min(self.grid_columns * self.grid_rows, len(source))
        images = [torch.tensor(to_pixels(source.read(i))) for i in range(count)]
        return make_grid(torch.stack(images), nrow=self.grid_columns, padding=1)


def _records(samples: Samples, level_names: tuple[str, ...], seed: int) -> Iterator[dict[str, Any]]:
    for row, (image, label, index) in enumerate(
        zip(samples.images, samples.labels, samples.index, strict=True)
    ):
        levels = dict(zip(level_names, samples.levels, strict=True))
        nll = {name: level.nll_nats[row].item() for name, level in levels.items()}
        record = {"__key__": f"{index:08d}", "png": png_bytes(image)}
        if label >= 0:
            record["cls"] = str(label.item()).encode()
        record["json"] = json.dumps({"seed": seed, "image": index.item(), "nll_nats": nll}).encode()
        codes = {
            f"{name}.npy": npy_bytes(level.codes[row].numpy().astype(CODES)) for name, level in levels.items()
        }
        yield {**record, **codes}
