"""The images' data module: what batches hold, which images are held out, what is refused."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.numbered import SIZE, epoch, module, numbers, picture
from tests.quiet import quiet_trainer
from tests.ranks import run_ranks
from vqvae2.data.augment import Augment
from vqvae2.data.images import ImageDataModule, held_out
from vqvae2.data.sources import open_source


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
    trainer = quiet_trainer(max_epochs=2, default_root_dir=tmp_path, num_sanity_val_steps=0)
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
