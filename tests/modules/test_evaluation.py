"""The verdict on tiny data, each figure computed again by hand from the files."""

import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_fidelity.metric_isc import isc_features_to_metric

from tests.metrics.reference import nuclear_norm_form
from tests.modules.evaluation_run import (
    CLASSES,
    CODES,
    GRIDS,
    NUM,
    SIZE,
    SPLITS,
    by_class,
    data_of,
    encode,
    floats,
    judge,
    make_run,
    module_of,
    noise,
)
from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.data.evaluation import spread


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return root, make_run(root)


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    root, _ = run
    return judge(module_of(root), data_of(root), tmp_path_factory.mktemp("eval"))


def seen(classifier, images):
    features = classifier.features(images).double()
    return features, classifier.head(features.float())


def test_sample_figures(run, report):
    _, networks = run
    samples, labels = floats(noise("samples")), torch.arange(NUM["samples"]) % CLASSES
    features, logits = seen(networks["classifier"], samples)
    real, _ = seen(networks["classifier"], by_class(noise("train"))[0])
    metrics = report["metrics"]
    assert metrics["fid_classifier"] == pytest.approx(nuclear_norm_form(features, real), rel=1e-5)
    score = isc_features_to_metric(logits, splits=SPLITS)
    assert metrics["is_classifier"] == pytest.approx(score["inception_score_mean"], rel=1e-6)
    assert metrics["is_classifier_std"] == pytest.approx(score["inception_score_std"], rel=1e-4)
    hits = (logits.argmax(1) == labels).double()
    assert metrics["class_accuracy"] == pytest.approx(hits.mean().item())
    by_label = [hits[labels == label].mean().item() for label in range(CLASSES)]
    assert metrics["class_accuracy_by_class"] == pytest.approx(by_label)


def test_reconstruction_figures(run, report):
    _, networks = run
    images, _ = by_class(noise("val"))
    error = (networks["vqvae"](images).images.double() - images.double()).square().mean().item()
    assert report["metrics"]["mse"] == pytest.approx(error, rel=1e-6)
    assert report["metrics"]["psnr_db"] == pytest.approx(10 * math.log10(4 / error), rel=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])
def test_code_figures(run, report, split):
    _, networks = run
    top, bottom, labels = encode(networks["vqvae"], split)
    logits = {
        "top": networks["top"](top, (), labels),
        "bottom": networks["bottom"](bottom, (top,), labels),
    }
    metrics, bits = report["metrics"], 0.0
    for level, codes in (("top", top), ("bottom", bottom)):
        nll = F.cross_entropy(logits[level].double(), codes).item()
        assert metrics[f"nll_{level}_{split}"] == pytest.approx(nll, rel=1e-6)
        bits += nll * math.prod(GRIDS[level]) / math.log(2)
        if split == "val":
            p = np.bincount(codes.flatten(), minlength=CODES) / codes.numel()
            entropy = -sum(q * math.log(q) for q in p if q)
            assert metrics[f"usage_{level}"] == pytest.approx((p > 0).mean())
            assert metrics[f"perplexity_{level}"] == pytest.approx(math.exp(entropy), rel=1e-9)
    assert metrics[f"bits_{split}"] == pytest.approx(bits, rel=1e-6)
    assert metrics[f"bpp_{split}"] == pytest.approx(bits / SIZE**2, rel=1e-6)


def test_report_says_what_was_judged_and_by_whom(run, report):
    root, _ = run
    parts = {
        "samples": "samples",
        "real": "train",
        "held_out": "val",
        "latents_train": "train",
        "latents_val": "val",
    }
    assert report["counts"] == {name: NUM[part] for name, part in parts.items()}
    assert set(report["unreadable"].values()) == {0}
    assert report["features"]["name"] == "classifier"
    assert len(report["features"]["fingerprint"]) == 64
    assert report["inputs"]["samples"] == str(root / "samples")
    assert report["seconds"] > 0
    assert report["names"]["fid_classifier"] == "FID (classifier)"
    assert "fid" not in report["metrics"]  # the name is Inception's
    assert set(report["names"]) == set(report["metrics"])


def test_two_ranks_with_uneven_shares_give_the_same_figures(run, report, tmp_path):
    root, _ = run

    def on_a_rank():  # each takes itself for the one that writes: Lightning did not start them
        return judge(module_of(root), data_of(root), tmp_path / str(distributed.rank()))

    for found in run_ranks(on_a_rank, 2):
        assert found["counts"] == report["counts"]
        for key, value in report["metrics"].items():
            assert found["metrics"][key] == pytest.approx(value, rel=1e-5), key


def test_samples_alone_and_latents_alone(run, tmp_path):
    root, _ = run
    module = module_of(root, autoencoder=None, priors=None)
    found = judge(module, data_of(root, latents=None, real="val", max_real=5), tmp_path)
    assert found["counts"] == {"samples": NUM["samples"], "real": 5}
    module = module_of(root, features=None, weights=None, autoencoder=None, priors=None)
    found = judge(module, data_of(root, samples=None, max_latents=4), tmp_path)
    assert found["counts"] == {"latents_val": 4}
    assert set(found["metrics"]) == {f"{name}_{level}" for name in ("usage", "perplexity") for level in GRIDS}


def test_one_view_of_each_training_image_is_scored(run, tmp_path):
    """The latents hold 23 samples; with 9 training images, the others would be further views of them."""
    root, _ = run
    module = module_of(root, features=None, weights=None, autoencoder=None)
    found = judge(module, data_of(root, samples=None, train=str(root / "val"), val=None), tmp_path)
    assert found["counts"] == {"latents_train": 9, "latents_val": NUM["val"]}


def test_an_unreadable_real_image_is_counted(run, tmp_path):
    root, _ = run
    shutil.copytree(root / "train", tmp_path / "train")
    next((tmp_path / "train").rglob("*.png")).write_bytes(b"no image")
    module = module_of(root, autoencoder=None, priors=None)
    found = judge(module, data_of(root, train=str(tmp_path / "train"), latents=None), tmp_path)
    assert found["counts"]["real"] == NUM["train"] - 1
    assert found["unreadable"] == {"samples": 0, "real": 1}


def test_spread_takes_from_everywhere():
    assert spread(10, None).tolist() == list(range(10))
    assert spread(10, 30).tolist() == list(range(10))
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
