"""Images that cannot be read: replaced in training, left out elsewhere, named once; or an error."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.numbered import SIZE, epoch, module, numbers
from tests.ranks import run_ranks
from vqvae2.data.augment import Augment


def test_training_replaces_the_unreadable_with_the_next_readable(damaged, caplog):
    data = module(damaged, num_workers=2)
    loader = data.train_dataloader()
    assert [len(batch.labels) for batch in epoch(loader)] == [4, 4, 4]
    for number in range(3):
        seen = sorted(n for batch in epoch(loader, number) for n in numbers(batch))
        assert seen == [0, 0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10]
    for batch in epoch(loader):
        assert batch.labels.tolist() == [number // 6 for number in numbers(batch)]
        assert batch.index.tolist() == numbers(batch)
    with caplog.at_level(logging.WARNING):
        data.teardown("fit")
    assert "skipped 3 of 12 train images, unreadable: a/02.png, a/03.png, b/11.png" in caplog.text


def test_each_unreadable_image_is_logged_once(damaged, caplog):
    loader = module(damaged).train_dataloader()
    for number in range(3):
        epoch(loader, number)
    for name in ("a/02.png", "a/03.png", "b/11.png"):
        assert caplog.text.count(name) == 1


def test_evaluation_and_encoding_leave_the_unreadable_out(damaged):
    data = module(damaged, val=str(damaged), num_workers=1)
    assert [n for batch in data.val_dataloader() for n in numbers(batch)] == [0, 1, 4, 5, 6, 7, 8, 9, 10]
    batches = list(data.predict_dataloader()[0])
    assert [len(batch.labels) for batch in batches] == [2, 4, 3]
    assert [i for batch in batches for i in batch.index.tolist()] == [0, 1, 4, 5, 6, 7, 8, 9, 10]


def test_a_batch_may_be_empty(damaged):
    batches = list(module(damaged, batch_size=1).predict_dataloader()[0])
    assert batches[2].images.shape == (0, 3, SIZE, SIZE)
    assert batches[2].keys == []


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_names_the_file(damaged, workers):
    with pytest.raises(ValueError, match=r"a/02\.png cannot be read \(the file is empty\)"):
        list(module(damaged, strict=True, num_workers=workers).predict_dataloader()[0])


def test_nothing_readable_is_an_error(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_text("x")
    with pytest.raises(ValueError, match="none of the 2 train images"):
        next(iter(module(tmp_path, batch_size=2).train_dataloader()))


def test_a_picture_without_a_known_white_is_named_and_left_out(folder, caplog):
    Image.fromarray(np.float32([[0, 255]])).save(folder / "a" / "unknown.tif")
    Image.fromarray(np.int32([[0, 255]])).save(folder / "b" / "whole.tif")
    data = module(folder)
    assert sum(len(batch.images) for batch in data.predict_dataloader()[0]) == 12
    assert "unknown.tif, it cannot be read (floats from 0 to 255, wanted 0 (black) to 1" in caplog.text
    assert "whole.tif, it cannot be read (whole numbers of 32 bits" in caplog.text
    data.teardown("fit")
    assert "skipped 2 of 14 train images" in caplog.text
    with pytest.raises(ValueError, match=r"unknown.tif cannot be read \(floats from 0 to 255"):
        list(module(folder, strict=True).predict_dataloader()[0])


def rank_batches(folder):
    data = module(folder, augment=Augment(shift=2), chunk_size=5)
    training = [(batch.keys, batch.images) for batch in epoch(data.train_dataloader(), 2)]
    encoding = [index for batch in data.predict_dataloader()[0] for index in batch.index.tolist()]
    data.teardown("fit")
    return training, encoding


def test_two_ranks_see_together_what_one_sees(damaged):
    whole, encoded = rank_batches(damaged)
    first, second = run_ranks(rank_batches, 2, damaged)
    for (keys, images), one, two in zip(whole, first[0], second[0], strict=True):
        assert len(one[0]) == len(two[0])
        assert keys == one[0] + two[0]
        assert torch.equal(images, torch.cat([one[1], two[1]]))
    assert sorted(first[1] + second[1]) == encoded


def rank_report(folder):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("vqvae2.data.images").addHandler(handler)
    data = module(folder)
    epoch(data.train_dataloader())
    data.teardown("fit")
    return messages


def test_the_count_is_over_all_ranks_and_told_once(damaged):
    first, second = run_ranks(rank_report, 2, damaged)
    assert first == ["skipped 3 of 12 train images, unreadable: a/02.png, a/03.png, b/11.png"]
    assert second == []
