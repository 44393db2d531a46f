import io
import json
import logging

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from tests.ranks import run_ranks
from vqvae2.data.augment import Augment
from vqvae2.data.images import ImageDataModule, held_out
from vqvae2.data.sources import open_source

SIZE = 8


def picture(number, size=SIZE):
    """An image that tells its number: every pixel is (number, column, row)."""
    row, column = np.indices((size, size))
    return Image.fromarray(np.stack([np.full_like(row, number), column, row], -1).astype(np.uint8))


def numbers(batch):
    """Which pictures a batch holds."""
    return ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in two classes: number 0 to 5 in a, 6 to 11 in b."""
    for number in range(12):
        path = tmp_path / "images" / ("a" if number < 6 else "b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "images"


@pytest.fixture
def damaged(folder):
    """The same twelve, but 2 is empty, 3 is cut short and 11, the last, is a text."""
    (folder / "a" / "02.png").write_bytes(b"")
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(data, "PNG")
    (folder / "a" / "03.png").write_bytes(data.getvalue()[:2000])
    (folder / "b" / "11.png").write_text("not an image")
    return folder


def module(folder, **options):
    options = {"image_size": SIZE, "batch_size": 4, **options}
    data = ImageDataModule(train=str(folder), **options)
    data.setup("fit")
    return data


def epoch(loader, number=0):
    loader.batch_sampler.set_epoch(number)
    return list(loader)


def test_pixels_labels_index_and_keys_belong_together(folder):
    data = module(folder)
    seen = []
    for batch in epoch(data.train_dataloader()):
        for row, number in enumerate(numbers(batch)):
            pixels = np.asarray(picture(number)).transpose(2, 0, 1) / 127.5 - 1
            torch.testing.assert_close(batch.images[row].double(), torch.tensor(pixels), atol=1e-6, rtol=0)
            assert batch.labels[row] == number // 6
            assert batch.index[row] == number
            assert batch.keys[row] == f"{'ab'[number // 6]}/{number:02d}"
            seen.append(number)
    assert sorted(seen) == list(range(12))
    assert data.num_classes == 2


def test_black_is_minus_one_and_white_is_one(tmp_path):
    Image.fromarray(np.uint8([[0, 255], [255, 0]])).save(tmp_path / "x.png")
    (batch,) = module(tmp_path, image_size=2, batch_size=1, channels=1).train_dataloader()
    assert torch.equal(batch.images, torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]]))
    assert batch.labels.tolist() == [-1]


@pytest.mark.parametrize("cache", [False, True])
def test_workers_and_cache_change_nothing(folder, cache):
    augment = Augment(flip=True, shift=2, brightness=0.1, noise_probability=0.5, noise_std=0.1)
    plain, other = (
        module(folder, augment=augment, seed=3, num_workers=workers, cache=kept).train_dataloader()
        for workers, kept in ((0, False), (2, cache))
    )
    epochs = [(epoch(plain, number), epoch(other, number)) for number in range(3)]
    for expected, found in epochs:
        for one, two in zip(expected, found, strict=True):
            assert torch.equal(one.images, two.images)
            assert one.keys == two.keys
    by_key = [
        {key: image for batch in batches for key, image in zip(batch.keys, batch.images, strict=True)}
        for batches, _ in epochs
    ]
    changed = [not torch.equal(by_key[0][key], by_key[1][key]) for key in by_key[0]]
    assert sum(changed) >= 11


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


def test_holdout_is_disjoint_stable_and_of_the_asked_size(folder):
    digits = open_source("demo:digits")
    out = held_out(digits, 0.1, 0)
    assert abs(out.sum() - 500) < 90
    assert abs((out & held_out(digits, 0.1, 1)).sum() - 50) < 30
    assert not (out & ~held_out(digits, 0.2, 0)).any()

    data = module(folder, holdout=0.3, batch_size=1)
    parts = [
        {key for batch in loader for key in batch.keys}
        for loader in (data.train_dataloader(), data.val_dataloader())
    ]
    source = open_source(str(folder))
    before = {source.key(i) for i in np.flatnonzero(held_out(source, 0.3, 0))}
    assert parts[1] == before
    assert parts[0] | parts[1] == {f"{'ab'[n // 6]}/{n:02d}" for n in range(12)}
    assert not parts[0] & parts[1]
    (folder / "a" / "00.png").unlink()
    later = module(folder, holdout=0.3, batch_size=1)
    assert {key for batch in later.val_dataloader() for key in batch.keys} == parts[1] - {"a/00"}


def test_encode_views(folder):
    augment = Augment(shift=2)
    data = module(folder, augment=augment, encode_views=2, encode_flips=True, chunk_size=5, holdout=0.3)
    assert data.num_views == 4
    assert list(data.predict_datasets()) == ["train", "val"]
    train, val = data.predict_dataloader()
    batches = list(train)
    count = len(data.splits["train"])
    images = torch.cat([batch.images for batch in batches])
    keys = [key for batch in batches for key in batch.keys]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(4 * count))
    assert len(set(keys)) == 4 * count
    assert [key.partition("#")[2] for key in keys[::count]] == ["", "1", "flip", "1#flip"]
    plain, moved, mirrored, moved_and_mirrored = images.split(count)
    plain_keys = keys[:count]
    for image, key in zip(plain, plain_keys, strict=True):
        pixels = np.asarray(picture(int(key[2:]))).transpose(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(image.double(), torch.tensor(pixels), atol=1e-6, rtol=0)
    assert torch.equal(mirrored, plain.flip(-1))
    assert torch.equal(moved_and_mirrored, moved.flip(-1))
    training = {}
    for batch in epoch(data.train_dataloader(), 1):
        training.update(zip(batch.keys, batch.images, strict=True))
    for image, key in zip(moved, plain_keys, strict=True):
        assert torch.equal(image, training[key])
    assert all("#" not in key for batch in val for key in batch.keys)


def test_validation_is_plain_whatever_the_augmentation(folder):
    data = module(folder, val=str(folder), augment=Augment(shift=3, brightness=0.5))
    batches = list(data.val_dataloader())
    assert [n for batch in batches for n in numbers(batch)] == list(range(12))


def test_digits_are_padded_not_resized():
    data = ImageDataModule(
        train="demo:digits", image_size=32, channels=1, batch_size=10, fit="pad", holdout=0.1
    )
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    source = open_source("demo:digits")
    for image, key in zip(batch.images, batch.keys, strict=True):
        digit = np.asarray(source.read(int(key.removeprefix("digit-"))))
        expected = np.pad(digit, 2)[None] / 127.5 - 1
        assert np.abs(image.numpy() - expected).max() < 1e-6
    assert data.num_classes == 10


def test_samples_drawn_again_are_other_images(folder):
    def digest():
        return module(folder).identity()["names_and_labels"]

    def draw(content):
        shard = {"file": "000000.tar", "num_samples": 8, "bytes": 10, "sha256": content}
        (folder / "manifest.json").write_text(json.dumps({"shards": [shard]}))
        return digest()

    assert len({digest(), draw("a" * 64), draw("b" * 64)}) == 3
    assert draw("a" * 64) == draw("a" * 64)


def test_val_folders_take_trains_labels(folder, tmp_path):
    path = tmp_path / "val" / "b" / "x.png"
    path.parent.mkdir(parents=True)
    picture(200).save(path)
    (batch,) = module(folder, val=str(tmp_path / "val")).val_dataloader()
    assert batch.labels.tolist() == [1]


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


def setup_error(folder, batch_size):
    with pytest.raises(ValueError) as caught:
        module(folder, batch_size=batch_size)
    return str(caught.value)


def test_batches_that_cannot_be_made_are_refused_with_ones_that_can(folder):
    assert "holds 12 training images, too few for a batch of 13" in setup_error(folder, 13)
    assert "batch_size to 12" in setup_error(folder, 13)
    for message in run_ranks(setup_error, 2, folder, 5):
        assert "batch_size 5 cannot be shared equally among 2 devices; 4 and 6 can" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": [8, 0]}, r"image_size is \[8, 0\]"),
        (
            {"image_size": [16, SIZE], "augment": Augment(shift=SIZE)},
            "augment.shift is 8, wanted less than 8",
        ),
        ({"channels": 2}, "channels is 2"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"holdout": 0.1, "val": "x"}, "one of the two"),
        ({"channels": 1, "augment": Augment(hue=0.1)}, "need colour"),
        ({"fit": "pad", "augment": Augment(random_crop=True)}, "needs fit: crop"),
        ({"augment": Augment(shift=SIZE)}, "augment.shift is 8"),
        ({"encode_views": 2}, "augment is off"),
        ({"seed": -1}, "seed is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_classes": -2}, "num_classes is -2"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_before_any_file_is_touched(options, message):
    with pytest.raises(ValueError, match=message):
        ImageDataModule(train="nowhere", **{"image_size": SIZE, "batch_size": 4, **options})


class Recorder(L.LightningModule):
    """Keeps the keys of what Lightning hands it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated, self.predicted = [], [], []

    def training_step(self, batch, _):
        self.trained.append(list(batch.keys))
        return self.weight * batch.images.mean()

    def validation_step(self, batch, _):
        self.validated.extend(batch.keys)

    def predict_step(self, batch, _, dataloader_idx=0):
        self.predicted.append((dataloader_idx, list(batch.keys)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_lightning_fits_and_predicts_with_and_without_held_out_images(folder, tmp_path, holdout):
    data = ImageDataModule(train=str(folder), image_size=SIZE, batch_size=4, holdout=holdout)
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, datamodule=data)
    trained = [key for keys in recorder.trained for key in keys]
    count = len(data.splits["train"])
    assert sorted(trained[:count]) == sorted(trained[count:])
    assert trained[:count] != trained[count:]
    assert set(recorder.validated).isdisjoint(trained)
    assert set(recorder.validated) | set(trained) == {f"{'ab'[n // 6]}/{n:02d}" for n in range(12)}
    trainer.predict(recorder, datamodule=data, return_predictions=False)
    predicted = {number: [] for number in range(len(data.predict_datasets()))}
    for number, keys in recorder.predicted:
        predicted[number].extend(keys)
    assert predicted[0] == sorted(set(trained))
    if holdout:
        assert set(predicted[1]) == set(recorder.validated)


@pytest.mark.parametrize("lying", [False, True])
def test_a_strip_is_seen_in_squares_from_end_to_end(tmp_path, lying):
    """20,000 pixels long and 1 wide, brighter by one each 100. The 96-fold enlargement is never made."""
    values = (np.arange(20_000) // 100).astype(np.uint8)
    Image.fromarray(values[None] if lying else values[:, None]).save(tmp_path / "strip.png")
    augment = Augment(random_crop=True, flip=True)
    data = module(tmp_path, image_size=96, batch_size=1, augment=augment, encode_views=60, cache=True)
    seen = torch.cat([batch.images for batch in data.predict_dataloader()[0]])
    seen = ((seen + 1) * 127.5).round().flatten(1)
    assert seen.shape == (60, 3 * 96 * 96)
    assert (seen.amax(1) - seen.amin(1)).max() <= 1  # about one pixel of the strip
    assert seen[0].mean() == pytest.approx(99.5, abs=0.5)  # the first view is of the middle
    assert seen.mean(1).min() < 20
    assert seen.mean(1).max() > 180
    assert len(epoch(data.train_dataloader())) == 1


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


def test_pictures_on_their_side_are_fitted_upright(tmp_path):
    """Twice as wide as high in the file and white at its left, which is the top when shown."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    (batch,) = module(tmp_path, batch_size=1, fit="pad", image_size=16).predict_dataloader()[0]
    wanted = np.zeros((16, 16))
    wanted[:4, 4:12] = 1
    assert np.array_equal((batch.images[0, 0].numpy() + 1) / 2, wanted)
