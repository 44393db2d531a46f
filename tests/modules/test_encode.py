"""The encode job: images → codes → shards → DataModule → images."""

import hashlib
import json
import os
import shutil
from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.callbacks.latents import LatentWriter
from vqvae2.data.images import ImageBatch, ImageDataModule
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.latents import LatentSpec, Level, read_manifest
from vqvae2.modules.checkpoint import DESCRIPTION
from vqvae2.modules.encode import EncodeModule
from vqvae2.nn.autoencoder import HierarchicalVQVAE, fingerprint

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
    options = {"image_size": 16, "batch_size": 4, "chunk_size": 10, **options}
    return ImageDataModule(train=str(folders / "train"), val=str(folders / "val"), **options)


def all_images(data):
    """What the encode job sees: {split: ImageBatch of all its images}."""
    splits = {}
    for split, loader in zip(data.split_names, data.predict_dataloader(), strict=True):
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


def encode(checkpoint, folder, images, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        callbacks=[LatentWriter(str(folder), samples_per_record=4)],
        **options,
    )
    trainer.predict(EncodeModule(str(checkpoint)), images, return_predictions=False)
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


def test_one_and_two_ranks_write_the_same_folder(checkpoint, folders, tmp_path):
    def work():
        os.environ["LOCAL_RANK"] = str(distributed.rank())  # Lightning then starts no processes itself
        encode(checkpoint, tmp_path / "two", image_data(folders), strategy="ddp", devices=2)

    run_ranks(work)
    alone = encode(checkpoint, tmp_path / "one", image_data(folders))
    assert hashes(tmp_path / "two") == hashes(alone)
    assert len(hashes(alone)) == 4 + 1 + 1


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
    spoilt = spoil(folders, tmp_path / "images", ["val/a/03"])
    with pytest.raises(ValueError, match="cannot be read"):
        encode(checkpoint, folder, image_data(spoilt, strict=True))
    with pytest.raises(ValueError, match="not finished"):
        read_manifest(folder)
    assert hashes(encode(checkpoint, folder, image_data(folders))) == wanted


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
