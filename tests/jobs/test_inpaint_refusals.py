"""Inpainting: which masks, pictures and classes are refused, and which label a picture gets."""

import json

import numpy as np
import pytest

from tests.checkpoints import save_chain
from tests.inpaint_job import (
    BLOCK,
    draw_masks,
    draw_pictures,
    requests,
    white,
    write,
)
from tests.sample_job import read, sample
from vqvae2.data.sources import open_source
from vqvae2.jobs.masked_pictures import MaskedPictures


@pytest.fixture
def chain(tmp_path):
    """The autoencoder, its checkpoint and the priors'; beside them pictures and masks."""
    draw_pictures(tmp_path / "pictures")
    draw_masks(tmp_path / "masks")
    return save_chain(tmp_path, classes=["cat", "dog", "owl"])


@pytest.mark.parametrize("changed", ["masks", "pictures", "keep_pixels", "per_picture", "mask", "fit"])
def test_other_masks_or_pictures_in_the_same_folder_are_refused(chain, tmp_path, changed):
    _, autoencoder, priors = chain
    sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path))
    options = {
        "keep_pixels": {"keep_pixels": True},
        "per_picture": {"per_picture": 3},
        "mask": {"mask": BLOCK},
        "fit": {"fit": "pad"},
    }
    if changed == "masks":
        draw_masks(tmp_path / "masks", seed=2)
    if changed == "pictures":
        draw_pictures(tmp_path / "pictures", seed=2)
    name = "masks" if changed == "mask" else changed
    with pytest.raises(ValueError, match=rf"belongs to another job: its inpaint\.{name}"):
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, **options.get(changed, {})))


def test_pictures_of_other_labels_are_another_job(tmp_path):
    """Names alone do not say it: labels of tars are in fields."""
    draw_pictures(tmp_path / "pictures")
    source = open_source(str(tmp_path / "pictures"))
    before = MaskedPictures(source, BLOCK, "crop").identity()
    assert MaskedPictures(source, BLOCK, "crop").identity() == before
    source.labels = source.labels[::-1].copy()
    after = MaskedPictures(source, BLOCK, "crop").identity()
    assert [name for name in before if before[name] != after[name]] == ["names_and_labels"]


SPECKS = np.tile(np.eye(2, dtype=np.uint8) * 255, (8, 8))
WRONG_MASKS = [
    (white(size=(16, 12)), r"dog/1\.png has 12x16 pixels, its picture has 16x16"),
    (white(slice(3), value=200), r"dog/1\.png has the values 0, 200, wanted black"),
    (white(slice(0)), r"dog/1\.png hides nothing"),
    (white(), r"dog/1\.png leaves nothing of the picture: it hides all\. To sample .* SampleRequests"),
    (SPECKS, r"dog/1\.png leaves nothing of the picture: every code covers a hidden pixel"),
    (None, r"has no mask for 1 of 6 pictures, such as dog/1\.png"),
]


@pytest.mark.parametrize(("mask", "message"), WRONG_MASKS)
def test_masks_that_do_not_fit_are_refused_before_anything_is_written(chain, tmp_path, mask, message):
    _, autoencoder, priors = chain
    (tmp_path / "masks/dog/1.png").unlink()
    if mask is not None:
        write(tmp_path / "masks/dog/1.png", mask)
    with pytest.raises(ValueError, match=message):
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path))
    assert not (tmp_path / "s").exists()


IMPOSSIBLE = [
    ({"mask": BLOCK, "masks": "masks"}, "Wanted one of the two"),
    ({"mask": None}, "Wanted one of the two"),
    ({"per_picture": 0}, "per_picture is 0"),
    ({"num_pictures": 0}, "num_pictures is 0"),
    ({"num_pictures": 7}, "num_pictures is 7, but .*pictures holds 6 pictures"),
    ({"holdout": 1.0}, "holdout is 1.0"),
    ({"holdout": 1e-9}, "holds 6 pictures, of which 0 are held out"),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE)
def test_what_cannot_be_asked_for_is_refused(chain, tmp_path, options, message):
    _, autoencoder, priors = chain
    with pytest.raises(ValueError, match=message):
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, **{"mask": BLOCK, **options}))
    assert not (tmp_path / "s").exists()


def test_pictures_smaller_than_the_networks_or_unreadable_are_refused(chain, tmp_path):
    _, autoencoder, priors = chain
    draw_pictures(tmp_path / "pictures", names=["owl/1"], size=(20, 15))
    with pytest.raises(ValueError, match=r"owl/1\.png has 20x15 pixels, fewer than the 16x16 of the network"):
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, mask=BLOCK))
    (tmp_path / "pictures/owl/1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"owl/1\.png cannot be read \(not an image"):
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, mask=BLOCK))
    assert not (tmp_path / "s").exists()


def test_pictures_get_the_priors_label_of_their_class(tmp_path):
    draw_pictures(tmp_path / "pictures")
    (tmp_path / "other").mkdir()
    _, autoencoder, priors = save_chain(tmp_path, classes=["owl", "cat", "dog"])
    found = read(sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, mask=BLOCK)))
    for members in found.values():
        place = json.loads(members["json"])["prompt"]
        assert int(members["cls"]) == [1, 1, 2, 2, 0, 0][place]
    _, autoencoder, priors = save_chain(tmp_path / "other", classes=["cow", "cat", "dog"])
    with pytest.raises(ValueError, match=r"Pictures in .* are of the class owl, which is not among"):
        sample(tmp_path / "t", autoencoder, priors, data=requests(tmp_path, mask=BLOCK))


def test_pictures_of_a_class_number_that_the_priors_lack_or_of_no_class(tmp_path):
    draw_pictures(tmp_path / "pictures")
    draw_pictures(tmp_path / "flat", names=["a", "b"])
    flat = {"pictures": str(tmp_path / "flat"), "mask": BLOCK}
    _, autoencoder, priors = save_chain(tmp_path, num_classes=2)
    with pytest.raises(ValueError, match="are of the class 2: the priors know 0 to 1"):
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, mask=BLOCK))
    with pytest.raises(ValueError, match="have no label, but the priors need one of 2 classes"):
        sample(tmp_path / "s", autoencoder, priors, data=requests(tmp_path, **flat))
    (tmp_path / "unlabelled").mkdir()
    _, autoencoder, priors = save_chain(tmp_path / "unlabelled", num_classes=0)
    for name, options in (("flat", flat), ("folders", {"mask": BLOCK})):
        found = read(sample(tmp_path / name, autoencoder, priors, data=requests(tmp_path, **options)))
        assert not any("cls" in members for members in found.values())
