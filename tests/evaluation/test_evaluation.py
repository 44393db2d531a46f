"""The evaluation on tiny data, each figure computed again by hand from the files."""

import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_fidelity.metric_isc import isc_features_to_metric

from tests.evaluation.evaluation_run import (
    CLASSES,
    CODES,
    EVERYTHING,
    GRIDS,
    NUM,
    SIZE,
    SPLITS,
    by_class,
    data_of,
    encode,
    evaluate,
    floats,
    make_run,
    module_of,
    noise,
    row,
    write_class_folders,
)
from tests.metrics.reference import nuclear_norm_form
from tests.ranks import run_ranks
from tests.sample_job import run as predict
from vqvae2 import distributed
from vqvae2.data.augment import Augment
from vqvae2.data.images import ImageDataModule
from vqvae2.evaluation.data_module import spread
from vqvae2.jobs.encode import EncodeModule
from vqvae2.jobs.latent_writer import LatentWriter


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return root, make_run(root)


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    root, _ = run
    return evaluate(module_of(root, **EVERYTHING), data_of(root), tmp_path_factory.mktemp("eval"))


def seen(classifier, images):
    features = classifier.features(images).double()
    return features, classifier.head(features.float())


def test_sample_figures(run, report):
    _, networks = run
    samples, labels = floats(noise("samples")), torch.arange(NUM["samples"]) % CLASSES
    features, logits = seen(networks["classifier"], samples)
    real, _ = seen(networks["classifier"], by_class(noise("train"))[0])
    metrics = row(report, "samples")["figures"]
    assert metrics["fid_classifier"] == pytest.approx(nuclear_norm_form(features, real), rel=1e-5)
    score = isc_features_to_metric(logits, splits=SPLITS)
    assert metrics["is_classifier"] == pytest.approx(score["inception_score_mean"], rel=1e-6)
    assert metrics["is_std_classifier"] == pytest.approx(score["inception_score_std"], rel=1e-4)
    hits = (logits.argmax(1) == labels).double()
    assert metrics["class_accuracy"] == pytest.approx(hits.mean().item())
    by_label = [hits[labels == label].mean().item() for label in range(CLASSES)]
    assert metrics["class_accuracy_by_class"] == pytest.approx(by_label)


def test_reconstruction_figures(run, report):
    _, networks = run
    for split in ("train", "val"):
        images, _ = by_class(noise(split))
        error = (networks["vqvae"](images).images.double() - images.double()).square().mean().item()
        assert report["figures"][f"mse_{split}"] == pytest.approx(error, rel=1e-6)
        psnr_db = 10 * math.log10(4 / error)
        assert report["figures"][f"psnr_db_{split}"] == pytest.approx(psnr_db, rel=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])
def test_code_figures(run, report, split):
    _, networks = run
    top, bottom, labels = encode(networks["vqvae"], split)
    logits = {
        "top": networks["top"](top, (), labels),
        "bottom": networks["bottom"](bottom, (top,), labels),
    }
    metrics, bits = report["figures"], 0.0
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
    assert metrics[f"compression_{split}"] == pytest.approx(SIZE**2 * 24 / bits, rel=1e-6)
    assert metrics["bits_stored"] == 80 * 4  # 4x4 and 8x8 codes of 16
    assert metrics["compression_stored"] == pytest.approx(SIZE**2 * 24 / 320)
    assert metrics["compression_values"] == pytest.approx(SIZE**2 * 3 / 80)


def test_report_says_what_was_evaluated_and_by_which_networks(run, report):
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
    assert report["networks"]["distance"]["name"] == "classifier"
    assert report["networks"]["distance"]["weights"] == str(root / "classifier.ckpt")
    assert len(report["networks"]["distance"]["fingerprint"]) == 64
    assert report["inputs"]["samples"] == {"samples": str(root / "samples")}
    assert report["seconds"] > 0
    assert report["legend"]["fid_classifier"] == {
        "name": "FID (classifier)",
        "metric": "fid",
        "better": "lower",
    }
    named = {key for found in report["sets"] for key in found["figures"]} | set(report["figures"])
    assert not named & {"fid", "precision"}  # these names are Inception's and VGG-16's
    assert set(report["legend"]) == named


def test_two_ranks_with_uneven_shares_give_the_same_figures(run, report, tmp_path):
    root, _ = run

    def on_a_rank():  # each takes itself for the one that writes: Lightning did not start them
        module = module_of(root, **EVERYTHING)
        return evaluate(module, data_of(root), tmp_path / str(distributed.rank()))

    for found in run_ranks(on_a_rank, 2):
        assert found["counts"] == report["counts"]
        assert found["figures"] == pytest.approx(report["figures"], rel=1e-5)
        for mine, theirs in zip(found["sets"], report["sets"], strict=True):
            assert mine["key"] == theirs["key"]
            for key, value in theirs["figures"].items():
                assert mine["figures"][key] == pytest.approx(value, rel=1e-4), (mine["key"], key)
        for mine, theirs in zip(found["neighbours"], report["neighbours"], strict=True):
            for space in ("features", "pixels"):
                nearest = [[place["index"] for place in each[space]] for each in (mine, theirs)]
                assert nearest[0] == nearest[1]


def test_samples_alone_and_latents_alone(run, tmp_path):
    root, _ = run
    module = module_of(root, autoencoder=None, priors=None)
    found = evaluate(module, data_of(root, latents=None, real="val", max_real=5), tmp_path)
    assert found["counts"] == {"samples": NUM["samples"], "real": 5}
    module = module_of(root, features=None, weights=None, autoencoder=None, priors=None)
    found = evaluate(module, data_of(root, samples=None, max_latents=4), tmp_path)
    assert found["counts"] == {"latents_val": 4}
    use = {f"{name}_{level}" for name in ("usage", "perplexity") for level in GRIDS}
    assert set(found["figures"]) == use | {"bits_stored", "compression_stored", "compression_values"}
    assert found["sets"] == []


@torch.no_grad()
@pytest.mark.parametrize("flips", [False, True])
def test_the_train_nll_is_of_plain_images_alone_where_some_cannot_be_read(run, tmp_path, flips):
    """20 files, 3 of them broken, two or four views each: 17 plain samples, and 17 or 51 others."""
    root, networks = run
    images, labels = by_class(noise("train")[:20])
    write_class_folders(tmp_path / "train", noise("train")[:20])
    paths = sorted((tmp_path / "train").rglob("*.png"))
    broken = (0, 7, 19)
    for number in broken:
        paths[number].write_bytes(b"no image")
    views = {"encode_views": 2, "encode_flips": flips, "augment": Augment(shift=4), "chunk_size": 8}
    train, val = str(tmp_path / "train"), str(root / "val")
    data = ImageDataModule(train=train, val=val, image_size=SIZE, batch_size=4, **views)
    predict(EncodeModule(str(root / "vqvae.ckpt")), data, LatentWriter(str(tmp_path / "latents")))
    module = module_of(root, features=None, weights=None, autoencoder=None)
    found = evaluate(
        module, data_of(root, samples=None, train=train, latents=str(tmp_path / "latents")), tmp_path
    )
    assert found["counts"] == {"latents_train": 17, "latents_val": NUM["val"]}
    readable = [number for number in range(20) if number not in broken]
    top, bottom = (codes[readable] for codes in networks["vqvae"].encode(images))
    for level, codes, above in (("top", top, ()), ("bottom", bottom, (top,))):
        nll = F.cross_entropy(networks[level](codes, above, labels[readable]), codes).item()
        assert found["figures"][f"nll_{level}_train"] == pytest.approx(nll, rel=1e-6)


def test_an_unreadable_real_image_is_counted(run, tmp_path):
    root, _ = run
    shutil.copytree(root / "train", tmp_path / "train")
    next((tmp_path / "train").rglob("*.png")).write_bytes(b"no image")
    module = module_of(root, autoencoder=None, priors=None)
    found = evaluate(module, data_of(root, train=str(tmp_path / "train"), latents=None), tmp_path)
    assert found["counts"]["real"] == NUM["train"] - 1
    assert found["unreadable"] == {"samples": 0, "real": 1, "held_out": 0}


def test_spread_takes_from_everywhere():
    assert spread(10, None).tolist() == list(range(10))
    assert spread(10, 30).tolist() == list(range(10))
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
