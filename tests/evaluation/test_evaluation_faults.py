"""What an evaluation refuses, and in what words."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluation.evaluation_run import (
    SIZE,
    VQVAE,
    data_of,
    evaluate,
    make_run,
    module_of,
    noise,
    png,
    prior_options,
    save,
    write_class_folders,
)
from vqvae2.data.latents import read_manifest, write_manifest
from vqvae2.metrics.quality import InfinitySizes, KernelSubsets, Neighbourhoods
from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.weights import fingerprint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return root, make_run(root)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({}, {"samples": None}, "give both"),
        ({"features": None}, {}, "give both"),
        ({"splits": 20}, {}, "19 of the samples .* is needs at least 20.*model.init_args.splits"),
        ({}, {"max_real": 1}, "1 real images, fid needs at least 2"),
        ({"kid": KernelSubsets(9, 20)}, {}, "19 of the samples .* kid needs at least 20.*kid.subset_size"),
        ({"kid": KernelSubsets(9, 12), "max_features": 9}, {}, "9 real images, kid needs at least 12"),
        ({"fid_infinity": InfinitySizes(3, 5, 50)}, {}, "19 of the samples .* needs at least 50"),
        ({"manifold": Neighbourhoods(3, 19)}, {}, "19 of the samples .* precision needs at least 20"),
        ({"manifold_features": "vgg17"}, {}, "no features 'vgg17'"),
        ({}, {"samples": {"a@b": "samples"}}, "'a@b' cannot be the name of samples"),
        ({}, {"samples": {"real": "samples"}}, "'real' cannot be the name of samples"),
        ({}, {"channels": 1}, "32x32 RGB, but the real images are 32x32 grey"),
        ({}, {"image_size": 16}, "32x32 RGB, but the real images are 16x16 RGB"),
        ({}, {"num_classes": 2}, "outside the 2 classes"),
        ({}, {"samples": "absent"}, "absent is not there"),
        ({}, {"num_classes": 4}, "trained for .*num_classes 3, but the data has .*num_classes 4"),
        ({}, {"latents": None}, "priors but no latents"),
        ({"priors": None}, {"val": None, "latents": None}, "autoencoder but .* no held-out images"),
        ({}, {"val": None, "real": "val"}, "no held-out images"),
        ({"weights": "absent.ckpt"}, {}, "no file absent.ckpt"),
        ({"autoencoder": "classifier.ckpt"}, {}, "of kind 'classifier', wanted 'autoencoder'"),
        ({"priors": ["top.ckpt", "top.ckpt"]}, {}, "of one level"),
        (
            {"features": None, "autoencoder": None, "priors": None},
            {"samples": None, "latents": None},
            "nothing to evaluate",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(run, tmp_path, model, data, message):
    root, _ = run
    model = {
        name: [str(root / path) for path in value] if name == "priors" and value else value
        for name, value in model.items()
    }
    if model.get("autoencoder"):
        model["autoencoder"] = str(root / model["autoencoder"])
    with pytest.raises(ValueError, match=message):
        evaluate(module_of(root, **model), data_of(root, **data), tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_empty_folder_of_samples(run, tmp_path):
    root, _ = run
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no image"):
        evaluate(module_of(root), data_of(root, samples=str(tmp_path / "none")), tmp_path)


def test_a_sample_of_another_size_among_many(run, tmp_path):
    root, _ = run
    write_class_folders(tmp_path / "mixed", np.concatenate([noise("samples")] * 2))
    odd = tmp_path / "mixed" / "class0" / "003.png"  # not one of those that are looked at beforehand
    odd.write_bytes(png(noise("samples")[0, :20]))
    with pytest.raises(ValueError, match=r"class0/003\.png is 32x20 RGB"):
        evaluate(module_of(root), data_of(root, samples=str(tmp_path / "mixed")), tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_another_autoencoder_is_named_with_both_fingerprints(run, tmp_path):
    root, networks = run
    torch.manual_seed(1)
    other = save(tmp_path / "other.ckpt", "autoencoder", HierarchicalVQVAE(**VQVAE), VQVAE, image_size=SIZE)
    both = f"{fingerprint(networks['vqvae'])[:16]}.*{fingerprint(other)[:16]}"
    with pytest.raises(ValueError, match=both):
        evaluate(module_of(root, autoencoder=str(tmp_path / "other.ckpt")), data_of(root), tmp_path)


def test_a_prior_of_other_latents_is_named_with_both_fingerprints(run, tmp_path):
    root, networks = run
    spec = replace(read_manifest(root / "latents").spec, autoencoder="f" * 64)
    options = prior_options("top")
    save(tmp_path / "p.ckpt", "prior", networks["top"], options, level="top", latents=spec.to_dict())
    with pytest.raises(ValueError, match=f"autoencoder {'f' * 16}.*{fingerprint(networks['vqvae'])[:16]}"):
        evaluate(module_of(root, priors=[str(tmp_path / "p.ckpt")]), data_of(root), tmp_path)


def test_a_prior_of_other_classes_is_refused_by_their_names(run, tmp_path):
    root, networks = run
    shutil.copytree(root / "latents", tmp_path / "latents")
    manifest = read_manifest(root / "latents")
    write_manifest(tmp_path / "latents", replace(manifest, classes=("cat", "dog", "e\u0301cole")))
    facts = {"level": "top", "latents": manifest.spec.to_dict()}
    for name, classes in (("same", ["cat", "dog", "\u00e9cole"]), ("other", ["dog", "cat", "\u00e9cole"])):
        path = tmp_path / f"{name}.ckpt"
        save(path, "prior", networks["top"], prior_options("top"), classes=classes, **facts)
    data = data_of(root, samples=None, latents=str(tmp_path / "latents"))
    alone = {"features": None, "weights": None, "autoencoder": None}
    evaluate(module_of(root, priors=[str(tmp_path / "same.ckpt")], **alone), data, tmp_path)
    with pytest.raises(ValueError, match=r"other.ckpt learned the classes dog, cat, .* has cat, dog"):
        evaluate(module_of(root, priors=[str(tmp_path / "other.ckpt")], **alone), data, tmp_path)
