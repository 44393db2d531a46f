"""The picture of samples: a class a column where that is said, for any number of classes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import save_chain
from tests.jobs.test_sample_prompts import tiles
from tests.sample_job import read, sample
from vqvae2.jobs.requests import SampleRequests
from vqvae2.jobs.sample_grids import GREY, sample_grid


class Numbered:
    """Stands in for `StoredImages`: image i is of 1x2 pixels, i // 250 and i % 250."""

    def __init__(self, num_images):
        self.num_images = num_images

    def __getitem__(self, number):
        assert 0 <= number < self.num_images
        return torch.tensor([[[number // 250, number % 250]]], dtype=torch.uint8)


def grid(per_class, num_classes, *, columns=None, rows=10, classes=None):
    """Rows of the numbers of the images shown, None where there is none."""
    data = SampleRequests(per_class=per_class, batch_size=1, classes=classes)
    pattern = data.pattern(num_classes)
    counts = per_class.values() if isinstance(per_class, dict) else [per_class * len(pattern)]
    picture = sample_grid(Numbered(sum(counts)), pattern, columns=columns, rows=rows)[0]
    cells = picture[1::2, 1:].unflatten(1, (-1, 3))[..., :2].tolist()  # a border of one pixel around each
    shown = [[None if cell == [GREY, GREY] else cell[0] * 250 + cell[1] for cell in row] for row in cells]
    labels = [[None if n is None else pattern[n % len(pattern)] for n in row] for row in shown]
    return shown, labels


@pytest.mark.parametrize("num_classes", [2, 6, 10, 20])
def test_each_of_up_to_twenty_classes_has_a_column(num_classes):
    shown, labels = grid(12, num_classes)
    assert labels == [list(range(num_classes))] * 10
    assert shown[9] == list(range(9 * num_classes, 10 * num_classes))


@pytest.mark.parametrize("num_classes", [21, 1000])
def test_of_more_classes_the_first_images_are_shown(num_classes):
    shown, _ = grid(5, num_classes)
    assert [n for row in shown for n in row] == list(range(100))


def test_uneven_counts_keep_to_their_columns_and_what_is_missing_is_grey():
    shown, labels = grid({3: 4, 7: 2}, 10)  # labels 3 7 3 3 7 3
    assert shown == [[0, 1], [2, 4], [3, None], [5, None]]
    assert labels == [[3, 7], [3, 7], [3, None], [3, None]]


def test_one_class_or_none_fills_the_picture():
    assert grid(25, 10, classes=[4])[0][1][:3] == [10, 11, 12]
    assert grid(25, 0)[0][1][:3] == [10, 11, 12]


def test_columns_that_are_asked_for_are_filled_one_after_the_other():
    assert grid(5, 6, columns=4, rows=2)[0] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_sample_job_writes_such_a_picture(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path, num_classes=6)
    writer = {"grid_columns": None, "grid_rows": 2}
    folder = sample(tmp_path / "samples", autoencoder, priors, per_class=3, writer=writer)
    members = list(read(folder).values())
    for row, found in enumerate(tiles(folder / "grid.png", columns=6, rows=2)):
        for label, tile in enumerate(found):
            shown = members[6 * row + label]
            assert int(shown["cls"]) == label
            assert np.array_equal(tile, np.asarray(Image.open(io.BytesIO(shown["png"]))))
