"""Inpainting: what a mask hides is sampled, all else stays."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.checkpoints import PRIOR, latent_spec, save_autoencoder, save_chain, save_prior_of
from tests.fit_runs import QUIET
from tests.inpaint_job import (
    BLOCK,
    NAMES,
    check_results,
    codes_of,
    draw_masks,
    draw_pictures,
    encoded,
    kept_by_loops,
    picture_of,
    requests,
    white,
    write,
)
from tests.jobs.test_sample_sundae import save_chain as save_mixed_chain
from tests.killed import survives_rename
from tests.sample_job import files, read, sample
from vqvae2.cli.suite import main as cli
from vqvae2.data.images import ImageDataModule
from vqvae2.nn.path_prior import PathPrior
from vqvae2.pixels import to_uint8


@pytest.mark.parametrize("levels", [1, 3])
def test_each_level_keeps_the_codes_that_no_mask_touches(tmp_path, levels):
    pictures, masks = draw_pictures(tmp_path / "pictures"), draw_masks(tmp_path / "masks")
    if levels == 3:
        for name in NAMES:  # of 2x2 codes on top one at least stays
            masks[name][:] = 0
            masks[name][3:7, 2:8] = 255
            write(tmp_path / f"masks/{name}.png", masks[name])
    network, autoencoder, priors = save_chain(tmp_path, classes=["cat", "dog", "owl"], num_levels=levels)
    folder = sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path))
    assert len(read(folder)) == 12
    check_results(folder, network, pictures, masks)


@pytest.mark.parametrize("kinds", ["sundae, pixelsnail", "sundae, sundae"])
def test_priors_of_any_kind_repaint(tmp_path, kinds):
    pictures, masks = draw_pictures(tmp_path / "pictures"), draw_masks(tmp_path / "masks")
    network, autoencoder, priors, _ = save_mixed_chain(tmp_path, kinds)
    check_results(
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path)), network, pictures, masks
    )


def test_a_prior_of_paths_repaints(tmp_path):
    pictures, masks = draw_pictures(tmp_path / "pictures"), draw_masks(tmp_path / "masks")
    autoencoder, network = save_autoencoder(tmp_path / "autoencoder.ckpt", num_levels=1)
    spec = latent_spec(network, 3)
    below = {"output_layers": 1, "conditioning_hidden": 8, "conditioning_blocks": 2}
    options = {**PRIOR, **below, "depth": 2}
    prior = save_prior_of(PathPrior, tmp_path / "path.ckpt", spec, 0, options, architecture="path")
    check_results(
        sample(tmp_path / "s", autoencoder, [prior], data=requests(tmp_path)), network, pictures, masks
    )


@pytest.fixture
def chain(tmp_path):
    """The autoencoder, its checkpoint and the priors'; beside them pictures and masks."""
    draw_pictures(tmp_path / "pictures")
    draw_masks(tmp_path / "masks")
    return save_chain(tmp_path, classes=["cat", "dog", "owl"])


def test_known_pixels_are_laid_over_the_results(chain, tmp_path):
    _, autoencoder, priors = chain
    pictures, masks = draw_pictures(tmp_path / "pictures"), draw_masks(tmp_path / "masks")
    plain = read(sample(tmp_path / "plain", autoencoder, priors, data=requests(tmp_path)))
    data = requests(tmp_path, keep_pixels=True)
    pasted = read(sample(tmp_path / "pasted", autoencoder, priors, data=data))
    for before, members in zip(plain.values(), pasted.values(), strict=True):
        name = sorted(pictures)[json.loads(members["json"])["prompt"]]
        hidden = masks[name] > 0
        wanted = np.where(hidden, picture_of(before), pictures[name])
        assert np.array_equal(picture_of(members), wanted)
        assert not np.array_equal(picture_of(before), wanted)
        assert members["bottom.npy"] == before["bottom.npy"]


def test_a_generated_mask_hides_the_same_of_every_picture(chain, tmp_path):
    network, autoencoder, priors = chain
    pictures = draw_pictures(tmp_path / "pictures")
    hidden = np.zeros((16, 16), np.uint8)
    hidden[4:12, 4:12] = 255
    folder = sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, mask=BLOCK))
    check_results(folder, network, pictures, dict.fromkeys(pictures, hidden))


def test_larger_pictures_and_their_masks_are_fitted_alike(chain, tmp_path):
    _, autoencoder, priors = chain
    draw_pictures(tmp_path / "pictures", size=(48, 32))
    mask = np.zeros((32, 48), np.uint8)
    mask[10:16, 20:21] = 255  # rows 5 to 7, column (20 - 8) / 2 of the middle
    for name in NAMES:
        write(tmp_path / f"masks/{name}.png", mask)
    data = requests(tmp_path)
    sample(tmp_path / "s", autoencoder, priors, data=data)
    places = data.masked[0].mask.nonzero().tolist()
    assert {(row, 6) for row in (5, 6, 7)} <= set(map(tuple, places))
    assert all(4 <= row <= 8 and 5 <= column <= 7 for row, column in places)
    small = requests(tmp_path, pictures=str(tmp_path / "small"), mask=BLOCK, fit="pad")
    draw_pictures(tmp_path / "small", size=(12, 10))
    sample(tmp_path / "padded", autoencoder, priors, data=small)
    assert (small.masked[0].pixels[0, :3] == 0).all()
    assert (small.masked[0].pixels[0, 3:13, 2:14] > 0).any()


def test_the_picture_shows_original_mask_reconstruction_and_results(chain, tmp_path):
    network, autoencoder, priors = chain
    pictures, masks = draw_pictures(tmp_path / "pictures"), draw_masks(tmp_path / "masks")
    writer = {"grid_columns": 5, "grid_rows": 3}
    folder = sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path), writer=writer)
    found = list(read(folder).values())
    picture = np.asarray(Image.open(folder / "grid.png").convert("L"))
    assert picture.shape == (3 * 17 + 1, 5 * 17 + 1)
    for row in range(3):
        tiles = [picture[1 + 17 * row : 17 * (row + 1), 1 + 17 * c : 17 * (c + 1)] for c in range(5)]
        name = sorted(pictures)[json.loads(found[2 * row]["json"])["prompt"]]
        assert np.array_equal(tiles[0], pictures[name])
        assert np.array_equal(tiles[1], np.where(masks[name] > 0, 128, pictures[name]))
        with torch.no_grad():
            own = network.decode([torch.tensor(level)[None] for level in encoded(network, pictures[name])])
        assert np.array_equal(tiles[2], to_uint8(own)[0, 0].numpy())
        for i in range(2):
            assert np.array_equal(tiles[3 + i], picture_of(found[2 * row + i]))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["request"]["pictures"]) == [f"{name}.png" for name in NAMES]


def test_pictures_come_in_an_order_that_asking_for_more_does_not_change(tmp_path):
    draw_pictures(tmp_path / "pictures")
    names = requests(tmp_path, mask=BLOCK).names
    assert len({*names}) == len(NAMES)
    assert names != sorted(names)  # the first few are not all of one class
    assert requests(tmp_path, mask=BLOCK, num_pictures=3).names == names[:3]


def test_what_is_held_out_is_what_training_holds_out(chain, tmp_path):
    _, autoencoder, priors = chain
    part = {"holdout": 0.5, "holdout_seed": 3}
    images = {"train": str(tmp_path / "pictures"), "image_size": 16, "batch_size": 1, "channels": 1}
    split = ImageDataModule(**images, **part).splits["val"]
    data = requests(tmp_path, mask=BLOCK, **part)
    sample(tmp_path / "s", autoencoder, priors, data=data)
    assert 0 < len(data.names) < 6
    assert sorted(data.names) == sorted(split.source.name(i) for i in split.samples)


def test_a_killed_job_is_completed_and_more_pictures_are_added(chain, tmp_path, one_thread):
    _, autoencoder, priors = chain

    def job(folder, **options):
        data = requests(tmp_path, per_picture=3, keep_pixels=True, **options)
        return files(sample(tmp_path / folder, autoencoder, priors, data=data))

    wanted = job("whole")
    assert not survives_rename(3, lambda: job("killed", num_pictures=4))
    job("killed", num_pictures=4)
    assert job("killed") == wanted
    assert job("killed") == wanted  # nothing is left to do


def test_pictures_are_encoded_once_a_batch_and_only_where_something_is_to_do(chain, tmp_path, monkeypatch):
    network, autoencoder, priors = chain
    encoded_at_once, encode = [], type(network).encode

    def counted(self, images):
        encoded_at_once.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(network), "encode", counted)
    folder = sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path))
    batches = [2, 1, 3, 1, 1]  # the pictures of the images 0 to 3, 4, 5 to 8, 9, 10 and 11
    assert encoded_at_once == [*batches, 2]  # of the picture's two rows
    sample(folder, autoencoder, priors, data=requests(tmp_path))
    assert encoded_at_once == [*batches, 2]
    (folder / "000001.tar").unlink()
    sample(folder, autoencoder, priors, data=requests(tmp_path))
    assert encoded_at_once == [*batches, 2, 3, 1, 2]


def test_half_precision_samples_but_does_not_encode(chain, tmp_path):
    network, autoencoder, priors = chain
    pictures, masks = draw_pictures(tmp_path / "pictures"), draw_masks(tmp_path / "masks")
    data = requests(tmp_path)
    folder = sample(tmp_path / "s", autoencoder, priors, data=data, precision="bf16-true")
    for members in read(folder).values():
        name = sorted(pictures)[json.loads(members["json"])["prompt"]]
        own = encoded(network, pictures[name])
        for level, original in zip(codes_of(members, ["top", "bottom"]), own, strict=True):
            kept = kept_by_loops(masks[name], original.shape)
            assert np.array_equal(level[kept], original[kept])
    assert next(data.trainer.lightning_module.autoencoder.parameters()).dtype == torch.bfloat16


def test_masks_from_configs_and_from_the_command_line(chain, tmp_path):
    network, autoencoder, priors = chain
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        **QUIET,
        "default_root_dir": str(tmp_path / "a"),
    }
    asked = {"pictures": str(tmp_path / "pictures"), "per_picture": 2, "batch_size": 4}
    job = {
        "trainer": {**trainer, "callbacks": [{"class_path": "SampleWriter"}]},
        "model": {"class_path": "SampleModule", "init_args": {"autoencoder": autoencoder, "priors": priors}},
        "data": {
            "class_path": "InpaintRequests",
            "init_args": {**asked, "mask": {"shape": "block", "share": 0.25}},
        },
    }
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(job))
    command = ["predict", "-c", str(config)]
    cli(command)
    cli([*command, "--data.mask.shape", "ring", "--trainer.default_root_dir", str(tmp_path / "b")])
    masks = ["--data.mask", "null", "--data.masks", str(tmp_path / "masks")]
    cli([*command, *masks, "--trainer.default_root_dir", str(tmp_path / "c")])
    pictures, own = draw_pictures(tmp_path / "pictures"), draw_masks(tmp_path / "masks")
    block = white((slice(4, 12), slice(4, 12)))
    ring = 255 - white((slice(1, 15), slice(1, 15)))  # of the share 0.25
    for folder, of in (("a", dict.fromkeys(own, block)), ("b", dict.fromkeys(own, ring)), ("c", own)):
        check_results(tmp_path / folder, network, pictures, of)
