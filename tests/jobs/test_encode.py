"""The encode job: images → codes → shards → DataModule → images."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image, ImageOps

from tests.killed import kill_at_rename, survives_rename
from tests.quiet import quiet_trainer
from tests.ranks import run_ranks
from tests.sample_job import run
from vqvae2 import distributed
from vqvae2.data.augment import Augment
from vqvae2.data.images import ImageBatch, ImageDataModule
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.latents import LatentSpec, Level, read_manifest
from vqvae2.jobs.encode import EncodeModule
from vqvae2.jobs.latent_writer import LatentWriter
from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.weights import fingerprint
from vqvae2.storage import shards
from vqvae2.storage.checkpoint import DESCRIPTION

OPTIONS = {
    "channels": 3,
    "num_levels": 2,
    "factor": 2,
    "hidden": 8,
    "residual": 4,
    "residual_blocks": 1,
    "num_codes": 16,
    "code_dim": 4,
    "decay": 0.99,
    "eps": 1e-5,
}
IMAGES = {"train": 34, "val": 7}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Class folders of noise images, of three classes."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, num_images in IMAGES.items():
        for i in range(num_images):
            path = root / split / "abc"[i % 3] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return root


def image_data(folders, **options):
    options = {"val": str(folders / "val"), "image_size": 16, "batch_size": 4, "chunk_size": 10, **options}
    return ImageDataModule(train=str(folders / "train"), **options)


def all_images(data):
    """What the encode job sees: {split: ImageBatch of all its images}."""
    splits = {}
    for split, loader in zip(data.predict_datasets(), data.predict_dataloader(), strict=True):
        images, labels, index, keys = zip(*loader, strict=True)
        splits[split] = ImageBatch(torch.cat(images), torch.cat(labels), torch.cat(index), list(chain(*keys)))
    return splits


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return HierarchicalVQVAE(**OPTIONS).eval()


@pytest.fixture
def checkpoint(network, tmp_path):
    path = tmp_path / "last.ckpt"
    state = {f"average.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({DESCRIPTION: {"kind": "autoencoder", "network": OPTIONS}, "state_dict": state}, path)
    return path


def encode(checkpoint, folder, images, *, samples_per_record=4, overwrite=False):
    writer = LatentWriter(str(folder), samples_per_record, overwrite=overwrite)
    run(EncodeModule(str(checkpoint)), images, writer)
    return folder


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_back(folder, batch_size=5):
    """All samples of a folder, through the DataModule: {split: (codes per level, labels)}."""
    data = LatentDataModule(latents=str(folder), batch_size=batch_size)
    data.prepare_data()
    data.setup("fit")
    splits = {}
    for split, loader in [("train", data.train_dataloader()), ("val", data.val_dataloader())]:
        batches = list(loader)
        order = torch.cat([batch.index for batch in batches]).argsort()
        codes = [torch.cat(level)[order] for level in zip(*(batch.codes for batch in batches), strict=True)]
        splits[split] = codes, torch.cat([batch.labels for batch in batches])[order]
    return splits


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"encode_flips": True}])
def test_stored_codes_decode_to_what_the_autoencoder_returns(network, checkpoint, folders, tmp_path, options):
    data = image_data(folders, **options)
    stored = read_back(encode(checkpoint, tmp_path / "latents", data))
    for split, seen in all_images(data).items():
        codes, labels = stored[split]
        assert torch.equal(labels, seen.labels)
        for i, image in enumerate(seen.images):
            direct = network(image[None]).images
            torch.testing.assert_close(network.decode([level[i : i + 1] for level in codes]), direct)
        assert len(codes[1].unique()) > 1  # else any code would do


def test_the_manifest_and_the_shards_describe_the_codes(network, checkpoint, folders, tmp_path, capsys):
    data = image_data(folders)
    folder = encode(checkpoint, tmp_path / "latents", data)
    manifest = read_manifest(folder)
    levels = (Level("top", 4, 4, 16), Level("bottom", 8, 8, 16))
    assert manifest.spec == LatentSpec(levels, num_classes=3, autoencoder=fingerprint(network))
    assert manifest.classes == ("a", "b", "c")
    assert [shard.num_samples for shard in manifest.splits["train"]] == [10, 10, 10, 4]
    urls = [str(folder / shard.file) for shard in manifest.splits["train"]]
    records = webdataset.WebDataset(urls, shardshuffle=False)
    keys = [key for record in records for key in json.loads(record["keys.json"])]
    assert keys == all_images(data)["train"].keys
    assert "Wrote 34 train, 7 val" in capsys.readouterr().out


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_writes_the_same_folder(checkpoint, folders, tmp_path, num_ranks):
    def work():
        os.environ["LOCAL_RANK"] = str(distributed.rank())  # Lightning then starts no processes itself
        encode(checkpoint, tmp_path / "many", image_data(folders))  # a batch is each rank's own

    run_ranks(work, num_ranks)
    alone = encode(checkpoint, tmp_path / "one", image_data(folders))
    assert hashes(tmp_path / "many") == hashes(alone)
    assert len(hashes(alone)) == 4 + 1 + 2  # the shards of both splits, job.json and manifest.json


def spoil(folders, target, keys):
    """A copy of the images in which those of `keys` are cut off."""
    shutil.copytree(folders, target)
    for key in keys:
        path = target / f"{key}.png"
        path.write_bytes(path.read_bytes()[:100])
    return target


def test_unreadable_images_are_left_out(checkpoint, folders, tmp_path):
    whole = image_data(folders)
    seen = all_images(whole)["train"]
    missing = {0, 11, *range(20, 30)}  # the whole third chunk among them
    spoilt = spoil(folders, tmp_path / "images", [f"train/{seen.keys[i]}" for i in missing])
    folder = encode(checkpoint, tmp_path / "latents", image_data(spoilt))
    assert [(shard.file, shard.num_samples) for shard in read_manifest(folder).splits["train"]] == [
        ("train/000000.tar", 9),
        ("train/000001.tar", 9),
        ("train/000003.tar", 4),
    ]
    readable = [i for i in range(IMAGES["train"]) if i not in missing]
    codes, labels = read_back(folder)["train"]
    all_codes, all_labels = read_back(encode(checkpoint, tmp_path / "whole", whole))["train"]
    for found, wanted in zip([*codes, labels], [*all_codes, all_labels], strict=True):
        assert torch.equal(found, wanted[readable])


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_readable_image(checkpoint, folders, tmp_path, split):
    keys = [f"{split}/{path.parent.name}/{path.stem}" for path in (folders / split).glob("*/*.png")]
    spoilt = spoil(folders, tmp_path / "images", keys)
    with pytest.raises(ValueError, match=f"No image of the split '{split}' could be read"):
        encode(checkpoint, tmp_path / "latents", image_data(spoilt))
    assert not (tmp_path / "latents" / "manifest.json").exists()


def test_a_broken_run_leaves_no_manifest_and_the_next_one_mends_the_folder(checkpoint, folders, tmp_path):
    folder = encode(checkpoint, tmp_path / "latents", image_data(folders))
    wanted = hashes(folder)
    (folder / "train" / "000077.tar").write_bytes(b"of an older, larger run")
    (folder / "val" / "000000.tar.part").write_bytes(b"of a run that was killed")
    assert hashes(encode(checkpoint, folder, image_data(folders))) == wanted
    spoilt = spoil(folders, tmp_path / "images", ["val/a/03"])
    with pytest.raises(ValueError, match="cannot be read"):
        encode(checkpoint, folder, image_data(spoilt, strict=True), overwrite=True)
    with pytest.raises(ValueError, match="not finished"):
        read_manifest(folder)
    assert hashes(encode(checkpoint, folder, image_data(folders), overwrite=True)) == wanted


def test_errors_come_before_the_first_batch(checkpoint, folders, tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint"):
        EncodeModule(str(tmp_path / "no.ckpt"))
    folder = tmp_path / "latents"
    with pytest.raises(ValueError, match="trained on images of 3 channels, the data has 1"):
        encode(checkpoint, folder, image_data(folders, channels=1))
    with pytest.raises(ValueError, match="do not divide"):
        encode(checkpoint, folder, image_data(folders, image_size=18))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"latents cannot be made: .*file is a file"):
        encode(checkpoint, tmp_path / "file" / "latents", image_data(folders))


@pytest.fixture
def encoded(monkeypatch):
    """How many images are encoded from now on in this process, batch by batch."""
    counts = []
    step = EncodeModule.predict_step

    def spy(self, batch, *args, **kwargs):
        counts.append(len(batch.keys))
        return step(self, batch, *args, **kwargs)

    monkeypatch.setattr(EncodeModule, "predict_step", spy)
    return counts


@pytest.mark.parametrize("number", [1, 2, 4, 6, 7])  # job.json, four shards, one, manifest.json
@pytest.mark.usefixtures("one_thread")
def test_a_killed_job_is_completed_to_the_same_bytes(checkpoint, folders, tmp_path, encoded, number):
    wanted = hashes(encode(checkpoint, tmp_path / "whole", image_data(folders)))
    folder = tmp_path / "killed"
    assert not survives_rename(number, lambda: encode(checkpoint, folder, image_data(folders)))
    left = {path: digest for path, digest in hashes(folder).items() if path.suffix == ".tar"}
    assert left.items() <= wanted.items()
    encoded.clear()
    assert hashes(encode(checkpoint, folder, image_data(folders))) == wanted
    assert sum(encoded) == {1: 41, 2: 41, 4: 21, 6: 7, 7: 0}[number]
    encoded.clear()
    encode(checkpoint, folder, image_data(folders, batch_size=5))
    assert (hashes(folder), sum(encoded)) == (wanted, 0)


def test_a_full_disk_ends_the_job_and_the_next_one_completes_it(checkpoint, folders, tmp_path, monkeypatch):
    whole = hashes(encode(checkpoint, tmp_path / "whole", image_data(folders)))
    real, calls = shards._to_disk, []

    def full(path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(shards, "_to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        encode(checkpoint, tmp_path / "latents", image_data(folders))
    left = hashes(tmp_path / "latents")
    assert not {path for path in left if path.name == "manifest.json" or path.suffix == ".part"}
    assert hashes(encode(checkpoint, tmp_path / "latents", image_data(folders))) == whole


def test_two_ranks_complete_what_two_ranks_began(checkpoint, folders, tmp_path):
    def begin():
        os.environ["LOCAL_RANK"] = str(distributed.rank())
        if distributed.rank() == 1:
            kill_at_rename(2)
        encode(checkpoint, tmp_path / "two", image_data(folders))

    def complete():
        os.environ["LOCAL_RANK"] = str(distributed.rank())
        encode(checkpoint, tmp_path / "two", image_data(folders))

    with pytest.raises(AssertionError):
        run_ranks(begin)
    run_ranks(complete)
    assert hashes(tmp_path / "two") == hashes(encode(checkpoint, tmp_path / "one", image_data(folders)))


def test_files_without_unreadable_images_are_whole(checkpoint, folders, tmp_path, encoded):
    keys = all_images(image_data(folders))["train"].keys
    spoilt = spoil(folders, tmp_path / "images", [f"train/{keys[i]}" for i in (0, 11, *range(20, 30))])
    folder = encode(checkpoint, tmp_path / "latents", image_data(spoilt))
    before = hashes(folder)
    encoded.clear()
    encode(checkpoint, folder, image_data(spoilt))
    assert (hashes(folder), encoded) == (before, [0, 0])  # nothing was read again
    (folder / "manifest.json").unlink()  # now the third file may be missing because nobody came to it
    assert hashes(encode(checkpoint, folder, image_data(spoilt))) == before
    assert sum(encoded) == 0
    (folder / "manifest.json").unlink()
    shutil.copy(folder / "train/000000.tar", folder / "train/000001.tar")
    assert hashes(encode(checkpoint, folder, image_data(spoilt))) == before
    assert sum(encoded) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encode_flips": True}, "its encode_flips is false, this job's is true"),
        ({"chunk_size": 11}, "its chunk_size is 10, this job's is 11"),
        ({"val": None, "holdout": 0.2}, "its val is "),
    ],
)
def test_codes_of_other_images_are_not_mixed(checkpoint, folders, tmp_path, options, message):
    folder = encode(checkpoint, tmp_path / "latents", image_data(folders))
    before = hashes(folder)
    with pytest.raises(ValueError, match=message):
        encode(checkpoint, folder, image_data(folders, **options))
    assert hashes(folder) == before


def test_renamed_images_are_other_images(checkpoint, folders, tmp_path):
    images = shutil.copytree(folders, tmp_path / "images")
    folder = encode(checkpoint, tmp_path / "latents", image_data(images))
    first = next((images / "train/a").iterdir())
    first.rename(first.with_stem("renamed"))
    with pytest.raises(ValueError, match="its names_and_labels is"):
        encode(checkpoint, folder, image_data(images))


def test_other_pictures_of_the_same_names_are_other_images(checkpoint, folders, tmp_path, encoded):
    images = shutil.copytree(folders, tmp_path / "images", copy_function=shutil.copyfile)
    folder = encode(checkpoint, tmp_path / "latents", image_data(images))
    before = hashes(folder)
    first = next((images / "val/a").iterdir())
    ImageOps.invert(Image.open(first)).save(first)
    with pytest.raises(ValueError, match=r"its contents\.val is"):
        encode(checkpoint, folder, image_data(images))
    job = json.loads((folder / "job.json").read_text())
    assert set(job["identity"].pop("contents")) == {"train", "val"}
    (folder / "job.json").write_text(json.dumps(job))  # as earlier versions wrote it
    encoded.clear()
    after = hashes(encode(checkpoint, folder, image_data(images)))
    del before[Path("job.json")], after[Path("job.json")]
    assert (sum(encoded), after) == (0, before)


def test_files_are_not_left_half_full(checkpoint, folders, tmp_path):
    callbacks = [LatentWriter(str(tmp_path / "latents"))]
    trainer = quiet_trainer(limit_predict_batches=2, callbacks=callbacks)
    with pytest.raises(ValueError, match="limit_predict_batches is 2, which would leave files half full"):
        trainer.predict(EncodeModule(str(checkpoint)), image_data(folders), return_predictions=False)
    assert not (tmp_path / "latents").exists()


def test_encoding_below_float32_warns_and_float32_does_not(checkpoint, folders, tmp_path):
    for precision, warns in (("bf16-mixed", True), ("16-true", True), ("32-true", False), ("64-true", False)):
        module = EncodeModule(str(checkpoint))
        module.trainer = SimpleNamespace(datamodule=image_data(folders), precision=precision)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module.setup("predict")
        said = [str(warning.message) for warning in caught if "encoded in" in str(warning.message)]
        assert bool(said) == warns, precision
        assert all("1.5 % of the top" in text and "6 % of the bottom" in text for text in said)


def test_more_views_than_any_disk_holds_are_refused_at_once(checkpoint, folders, tmp_path):
    views = {"augment": Augment(shift=1), "encode_views": 10**13}
    with pytest.raises(
        ValueError, match=r"340,000,000,000,000 train, which is more than 1,000,000 files of 10"
    ):
        encode(checkpoint, tmp_path / "latents", image_data(folders, **views))
    with pytest.raises(ValueError, match=r"340,000,000,000,007 samples take at least 57,120,000 GB"):
        encode(checkpoint, tmp_path / "latents", image_data(folders, **views, chunk_size=10**13))
    assert not (tmp_path / "latents").exists()
