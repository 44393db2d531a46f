"""Pictures of what the sample job wrote."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from vqvae2.jobs.inpaint import InpaintRequests
from vqvae2.jobs.prompts import PromptRequests
from vqvae2.jobs.sample import SampleModule
from vqvae2.pictures.decode import open_image, to_pixels
from vqvae2.pixels import to_uint8
from vqvae2.storage.shards import Member, Shard, index_members, read_member

GREY = 128
MOST_COLUMNS = 20  # of a picture with a class a column
_COLUMNS = 10  # of other pictures


class StoredImages:
    """The images of a folder of samples by their numbers.

    Args:
        folder: of the samples.
        shards: in the order of their samples.
        chunk_size: samples in each, but the last.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], chunk_size: int) -> None:
        self.paths = [folder / shard.file for shard in shards]
        self.num_images = sum(shard.num_samples for shard in shards)
        self.chunk_size = chunk_size
        self._indexed: dict[Path, list[Member]] = {}

    def __getitem__(self, number: int) -> Tensor:
        """uint8 [C, H, W]."""
        path = self.paths[number // self.chunk_size]
        if path not in self._indexed:
            self._indexed[path] = [members["png"] for members in index_members(path).values()]
        png = self._indexed[path][number % self.chunk_size]
        return torch.tensor(to_pixels(open_image(read_member(path, png))))


def sample_grid(images: StoredImages, pattern: Sequence[int], *, columns: int | None, rows: int) -> Tensor:
    """The first images, uint8 [C, height, width].

    Args:
        images: image i has the label `pattern[i % len(pattern)]`.
        pattern: labels, -1 without classes.
        columns: so many images fill a row, then the next. None gives each class a column, in the order in
            which the classes come first, grey where it has fewer images; of one class, none, or more than
            `MOST_COLUMNS`, 10 images fill a row.
        rows: at most so many.
    """
    classes = list(dict.fromkeys(pattern))
    if columns is None and 1 < len(classes) <= MOST_COLUMNS:
        return _by_class(images, pattern, classes, rows)
    columns = columns or _COLUMNS
    shown = [images[number] for number in range(min(columns * rows, images.num_images))]
    return make_grid(torch.stack(shown), nrow=columns, padding=1)


def _by_class(images: StoredImages, pattern: Sequence[int], classes: list[int], rows: int) -> Tensor:
    numbers: dict[int, list[int]] = {label: [] for label in classes}
    for number in range(min(images.num_images, len(pattern) * rows)):  # each class comes in each pattern
        numbers[pattern[number % len(pattern)]].append(number)
    rows = min(rows, max(map(len, numbers.values())))
    grey = torch.full_like(images[0], GREY)
    shown = [
        images[found[row]] if row < len(found) else grey for row in range(rows) for found in numbers.values()
    ]
    return make_grid(torch.stack(shown), nrow=len(classes), padding=1)


@torch.no_grad()
def prompt_grid(
    images: StoredImages, module: SampleModule, data: PromptRequests, *, columns: int | None, rows: int
) -> Tensor:
    """uint8 [C, height, width]: a row for each of the first prompts.

    From left to right: the prompt's own codes decoded; what is kept of them; what was sampled. What is hidden
    is grey in the second, or, where levels are kept whole, what these decode to with zeros for the others.
    """
    count, per_row = min(rows, data.num_prompts), min(max((columns or _COLUMNS) - 2, 1), data.per_prompt)
    codes = [level.to(module.device) for level in data.codes(range(count))]
    own = to_uint8(module.autoencoder.decode(codes)).cpu()
    kept = torch.full_like(own, GREY)
    if data.levels:
        kept = to_uint8(module.autoencoder.decode(codes, len(data.levels))).cpu()
    seen = round(data.rows * own.shape[2])  # pixels
    kept[:, :, :seen] = own[:, :, :seen]
    shown = []
    for prompt in range(count):
        first = prompt * data.per_prompt
        shown += [own[prompt], kept[prompt], *(images[first + i] for i in range(per_row))]
    return make_grid(torch.stack(shown), nrow=2 + per_row, padding=1)


@torch.no_grad()
def inpaint_grid(
    images: StoredImages, module: SampleModule, data: InpaintRequests, *, columns: int | None, rows: int
) -> Tensor:
    """uint8 [C, height, width]: a row for each of the first pictures.

    From left to right: the picture; the same with what is repainted in grey; what its codes decode to; what
    was sampled.
    """
    count, per_row = min(rows, len(data.masked)), min(max((columns or _COLUMNS) - 3, 1), data.per_picture)
    codes = [level.to(module.device) for level in data.codes(range(count))]
    decoded = to_uint8(module.autoencoder.decode(codes)).cpu()
    shown = []
    for number, (pixels, mask, _) in enumerate(data.masked[:count]):
        first = number * data.per_picture
        results = (images[first + i] for i in range(per_row))
        shown += [pixels, pixels.masked_fill(mask, GREY), decoded[number], *results]
    return make_grid(torch.stack(shown), nrow=3 + per_row, padding=1)
