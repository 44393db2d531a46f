"""Priors know their classes by name: a picture is completed as what it is of, or not at all."""

import json
import logging
import unicodedata

import numpy as np
import pytest
import torch

from tests.checkpoints import IMAGE_SIZE, latent_spec, save, save_chain, save_prior
from tests.sample_job import read, sample
from tests.training.training_run import trainer
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest
from vqvae2.jobs.prompts import PromptRequests
from vqvae2.jobs.sample import SampleModule
from vqvae2.nn.classifier import Classifier
from vqvae2.storage.checkpoint import DESCRIPTION, read_description
from vqvae2.training.pixelsnail import TopPriorModule
from vqvae2.training.schedules import Constant

PETS = ["cat", "dog", "école"]
DECOMPOSED = unicodedata.normalize("NFD", "école")


def write_latents(folder, spec, labels, classes):
    draw = np.random.default_rng(0)
    codes = [
        draw.integers(0, level.num_codes, (len(labels), level.height, level.width)) for level in spec.levels
    ]
    keys = [str(i) for i in range(len(labels))]
    splits = {
        split: (
            write_shard(
                folder, f"{split}/000000.tar", spec, codes=codes, labels=np.array(labels), keys=keys,
                samples_per_record=4,
            ),
        )
        for split in ("train", "val")
    }  # fmt: skip
    write_manifest(folder, Manifest(spec, tuple(classes), {}, splits))
    return folder


@pytest.fixture
def complete(tmp_path):
    """Completes prompts of some labels, in a folder of other classes; gives the labels that they got."""

    def work(labels, classes, *, known=PETS, job="s"):
        network, autoencoder, priors = save_chain(tmp_path, num_classes=3, classes=known)
        spec = latent_spec(network, len(classes))
        write_latents(tmp_path / "latents", spec, labels, classes)
        data = PromptRequests(
            prompts=str(tmp_path / "latents"), per_prompt=2, num_prompts=len(labels), batch_size=4, rows=0.5
        )
        found = read(sample(tmp_path / job, autoencoder, priors, data=data)).values()
        facts = [(json.loads(members["json"])["prompt"], int(members["cls"])) for members in found]
        assert len(set(facts)) == len(labels)
        return [label for _, label in sorted(set(facts))]

    return work


def test_prompts_get_the_label_that_their_name_has_among_the_priors_classes(complete):
    assert complete([0, 1, 0], ["dog", DECOMPOSED]) == [1, 2, 1]


def test_one_class_folder_padded_with_numbers_is_its_own_class(complete):
    assert complete([0, 0], ["dog", "1", "2"]) == [1, 1]


def test_the_same_classes_in_another_order_are_told_apart(complete):
    assert complete([0, 1, 2], ["école", "dog", "cat"]) == [2, 1, 0]


def test_a_class_that_the_priors_do_not_know_is_refused_by_name(complete, tmp_path):
    with pytest.raises(ValueError, match=r"of the class horse, which is not among .* cat, dog, école"):
        complete([0, 1], ["dog", "horse"])
    assert not (tmp_path / "s").exists()
    assert complete([0, 0], ["dog", "horse"]) == [1, 1]  # no prompt is of it


@pytest.mark.parametrize(
    ("classes", "known", "said"),
    [
        (["0", "1", "2"], PETS, True),  # a folder of tars
        (PETS, None, True),  # checkpoints from before they kept the names
        (PETS, ["0", "1", "2"], True),
        (["0", "1", "2"], ["0", "1", "2"], False),
        (["0", "1", "2"], None, False),
    ],
)
def test_classes_that_are_known_by_number_are_taken_by_it_and_that_is_said(
    complete, caplog, classes, known, said
):
    with caplog.at_level(logging.WARNING):
        assert complete([2, 0, 1], classes, known=known) == [2, 0, 1]
    assert ("by number only" in caplog.text) == said


def test_fewer_numbers_than_the_priors_have_classes_are_refused_as_ever(complete):
    with pytest.raises(ValueError, match=r"with 2 classes, the priors learned .* with 3 classes"):
        complete([0, 1], ["0", "1"])


def test_samples_keep_their_classes_names_for_other_priors(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path, classes=PETS)
    first = sample(tmp_path / "first", autoencoder, priors)
    assert json.loads((first / "manifest.json").read_text())["classes"] == PETS
    spec = latent_spec(network, 3)
    others = [save_prior(tmp_path / f"o{i}.ckpt", spec, i, classes=PETS[::-1]) for i in range(2)]
    data = PromptRequests(prompts=str(first), per_prompt=1, num_prompts=9, batch_size=4, rows=0.5)
    for members in read(sample(tmp_path / "second", autoencoder, others, data=data)).values():
        prompt = json.loads(members["json"])["prompt"]
        assert int(members["cls"]) == 2 - prompt % 3  # sample i of the first job is of class i % 3


def test_priors_of_other_classes_do_not_make_a_chain(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path, classes=PETS)
    spec = latent_spec(network, 3)
    options = {"autoencoder": autoencoder, "temperatures": [1.0, 1.0]}
    other = save_prior(tmp_path / "other.ckpt", spec, 1, classes=["cat", "dog", "horse"])
    with pytest.raises(
        ValueError, match=r"other.ckpt learned the classes cat, dog, horse, .* cat, dog, école"
    ):
        SampleModule(priors=[priors[0], other], **options)
    same = save_prior(tmp_path / "same.ckpt", spec, 1, classes=["cat", "dog", DECOMPOSED])
    old = save_prior(tmp_path / "old.ckpt", spec, 0)
    assert SampleModule(priors=[old, same], **options).classes == tuple(PETS)


def test_a_rejection_classifier_of_other_classes_is_refused(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path, classes=PETS)
    options = {"autoencoder": autoencoder, "priors": priors, "temperatures": [1.0, 1.0]}
    network = {"num_classes": 3, "channels": 1, "architecture": "small", "widths": [4], "blocks": 1}
    for name, classes in (("same", ["cat", "dog", DECOMPOSED]), ("other", PETS[::-1])):
        facts = {"network": network, "image_size": IMAGE_SIZE, "classes": classes}
        save(tmp_path / f"{name}.ckpt", Classifier(**network), kind="classifier", **facts)
    SampleModule(rejection_classifier=str(tmp_path / "same.ckpt"), **options)
    with pytest.raises(ValueError, match=r"other.ckpt was trained on the classes école, dog, cat"):
        SampleModule(rejection_classifier=str(tmp_path / "other.ckpt"), **options)


SPEC = LatentSpec((Level("top", 4, 4, 7),), 3, "a1" * 32)
WIDTHS = {"hidden": 8, "residual": 8, "layers": 1, "attention_layers": 0, "kernel": 3, "dropout": 0.0}


def fit(latents, steps, path=None, ckpt_path=None):
    torch.manual_seed(0)
    module = TopPriorModule(schedule=Constant(1e-3), polyak=0.9, output_layers=0, **WIDTHS)
    fitting = trainer(steps)
    fitting.fit(module, LatentDataModule(latents=str(latents), batch_size=4), ckpt_path=ckpt_path)
    if path is not None:
        fitting.save_checkpoint(path)
    return module


def test_a_priors_checkpoint_keeps_the_names_and_goes_on_with_these_classes_alone(tmp_path):
    labels = [0, 1, 2, 0]
    latents = write_latents(tmp_path / "latents", SPEC, labels, ["cat", "dog", DECOMPOSED])
    path = tmp_path / "top.ckpt"
    fit(latents, 1, path)
    assert read_description(path)["classes"] == PETS  # composed
    composed = write_latents(tmp_path / "composed", SPEC, labels, PETS)
    fit(composed, 2, ckpt_path=path)
    other = write_latents(tmp_path / "other", SPEC, labels, ["cat", "dog", "horse"])
    with pytest.raises(ValueError, match=r"its classes is .*école.*, here it is .*horse"):
        fit(other, 2, ckpt_path=path)


def test_a_checkpoint_from_before_they_were_kept_goes_on(tmp_path):
    latents = write_latents(tmp_path / "latents", SPEC, [0, 1, 2, 0], PETS)
    path = tmp_path / "top.ckpt"
    fit(latents, 1, path)
    content = torch.load(path, weights_only=True)
    del content[DESCRIPTION]["classes"]
    torch.save(content, path)
    assert fit(latents, 2, ckpt_path=path).description["classes"] == PETS
