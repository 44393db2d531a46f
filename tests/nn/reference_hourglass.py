"""The hourglass transformer as the paper says it, position by position: slow and obvious.

Source: Megapixel Image Generation with Step-Unrolled Denoising Autoencoders (McKinney and Willcocks, 2022),
section 3.2, equation 4 and figure 5; positions as SPEC section 7 has them. There is no padding here: a grid
is its positions, and a patch is those of its 2x2 that there are. Only the angles, and the places of numbers
in the resampling's matrices, are those of the next even grid.

Weights are taken from a state dict by the role that their names say. One image, in float64.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
Place = tuple[int, int]  # row, column
Cells = dict[Place, Tensor]  # what each position has


def evenly(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * i / max(count - 1, 1) for i in range(count)]


def angles(height: int, width: int, head_width: int) -> Cells:
    """[e/2] of each position: the row's, then the column's."""
    frequencies = evenly(1, math.sqrt(height * width) / 2, head_width // 4)
    found = {}
    for row, down in enumerate(evenly(-1, 1, height)):
        for column, along in enumerate(evenly(-1, 1, width)):
            turns = [place * math.pi / 2 * f for place in (down, along) for f in frequencies]
            found[row, column] = torch.tensor(turns, dtype=torch.float64)
    return found


def turned(head: Tensor, angle: Tensor) -> Tensor:
    """One head's [e]: its pairs are complex numbers, each is multiplied by e^(i·angle)."""
    pairs = torch.view_as_complex(head.reshape(-1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()


def normalised(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(
    state: State, name: str, queries: Cells, at: Cells, keys: Cells, keys_at: Cells, heads: int
) -> Cells:
    """Each of `queries` plus what it finds in `keys`; each head turns both by the same angles."""
    width = len(state[f"{name}.query.weight"]) // heads
    parts = [slice(head * width, (head + 1) * width) for head in range(heads)]
    seen = []  # of each key: what each head compares, and what it takes
    for place, y in keys.items():
        key, value = (state[f"{name}.key_value.weight"] @ normalised(state, f"{name}.norm", y)).chunk(2)
        seen.append([(turned(key[part], keys_at[place]), value[part]) for part in parts])
    after = {}
    for place, x in queries.items():
        query = state[f"{name}.query.weight"] @ normalised(state, f"{name}.norm", x)
        found = []
        for head, part in enumerate(parts):
            mine = turned(query[part], at[place])
            weights = torch.stack([mine @ each[head][0] / math.sqrt(width) for each in seen]).softmax(0)
            found.append(weights @ torch.stack([each[head][1] for each in seen]))
        after[place] = x + state[f"{name}.out.weight"] @ torch.cat(found)
    return after


def layer(state: State, name: str, cells: Cells, at: Cells, heads: int) -> Cells:
    after = {}
    for place, x in attention(state, f"{name}.attention", cells, at, cells, at, heads).items():
        h = normalised(state, f"{name}.dense.0", x)
        h = state[f"{name}.dense.1.weight"] @ h + state[f"{name}.dense.1.bias"]
        h = state[f"{name}.dense.4.weight"] @ F.gelu(h) + state[f"{name}.dense.4.bias"]
        after[place] = x + h
    return after


def layers(state: State, name: str, cells: Cells, at: Cells, heads: int) -> Cells:
    number = 0
    while f"{name}.{number}.attention.out.weight" in state:
        cells = layer(state, f"{name}.{number}", cells, at, heads)
        number += 1
    return cells


def corners(patch: Place) -> Iterator[tuple[int, Place]]:
    """The positions of a patch, in order, with their numbers."""
    for down in (0, 1):
        for along in (0, 1):
            yield 2 * down + along, (2 * patch[0] + down, 2 * patch[1] + along)


def hourglass(state: State, x: Tensor, *, heads: int, head_width: int) -> Tensor:
    """[H, W, d] → [H, W, d]."""
    height, width, channels = x.shape
    half = (height + 1) // 2, (width + 1) // 2
    fine, coarse = angles(2 * half[0], 2 * half[1], head_width), angles(*half, head_width)
    cells = {(row, column): x[row, column] for row in range(height) for column in range(width)}
    cells = layers(state, "before", cells, fine, heads)
    patches, inside = {}, {}
    for patch in coarse:
        inside[patch] = {number: place for number, place in corners(patch) if place in cells}
        centre = {patch: sum(fine[place] for _, place in corners(patch)) / 4}
        there = {place: cells[place] for place in inside[patch].values()}
        missing = torch.zeros(channels, dtype=x.dtype)
        depth = torch.cat([cells.get(place, missing) for _, place in corners(patch)])
        short = {patch: state["shorten.weight"] @ depth + state["shorten.bias"]}
        patches |= attention(state, "to_patches", short, centre, there, fine, heads)
    patches = layers(state, "middle", patches, coarse, heads)
    spread = {}
    for patch, short in patches.items():
        value = state["from_patches.1.weight"] @ normalised(state, "from_patches.0", short)
        parts = (state["lengthen.weight"] @ short + state["lengthen.bias"]).chunk(4)
        spread |= {place: parts[number] + cells[place] + value for number, place in inside[patch].items()}
    spread = {place: spread[place] for place in cells}  # in the order of rows again
    cells = layers(state, "after", spread, fine, heads)
    return torch.stack([torch.stack([cells[r, c] for c in range(width)]) for r in range(height)])
