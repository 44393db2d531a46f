"""Every set of an evaluation beside its reference: figures by other libraries from the files themselves."""

import json
import shutil

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from tests.evaluation.evaluation_run import (
    CLASSES,
    CLASSIFIER,
    EVERYTHING,
    NUM,
    SIZE,
    by_class,
    data_of,
    evaluate,
    floats,
    make_run,
    module_of,
    noise,
    png,
    row,
    save,
)
from tests.metrics.reference import nuclear_norm_form
from vqvae2.nn.classifier import Classifier
from vqvae2.pixels import to_uint8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    networks = make_run(root)
    torch.manual_seed(7)
    facts = {"image_size": SIZE, "classes": [f"class{i}" for i in range(CLASSES)]}
    other = save(root / "other.ckpt", "classifier", Classifier(**CLASSIFIER), CLASSIFIER, **facts)
    return root, {**networks, "other": other}


def everything(root, **options):
    second = {"manifold_features": "classifier", "manifold_weights": str(root / "other.ckpt")}
    return module_of(root, **{**EVERYTHING, **second, "priors": None, **options})


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    root, _ = run
    module = everything(root, keep=str(root / "kept"))
    return evaluate(module, data_of(root), tmp_path_factory.mktemp("eval"))


def stored(images):
    """As a feature network reads them: bytes."""
    return to_uint8(images).float() / 127.5 - 1


@pytest.fixture(scope="module")
def images(run):
    """The images of every set."""
    _, networks = run
    train, held_out = by_class(noise("train"))[0], by_class(noise("val"))[0]
    return {
        "real": train,
        "samples": floats(noise("samples")),
        "held_out": held_out,
        "reconstructions": stored(networks["vqvae"](held_out).images),
        "reconstructed": stored(networks["vqvae"](train).images),
    }


KEYS = ("samples", "reconstructions", "held_out")


@pytest.mark.parametrize("key", KEYS)
def test_distances_of_every_set(run, images, report, key):
    classifier = run[1]["classifier"]
    seen = {name: classifier.features(found).detach() for name, found in images.items()}
    figures = row(report, key)["figures"]
    for metric, reference in (("fid", "real"), ("fid_star", "reconstructed")):
        expected = nuclear_norm_form(seen[key].double(), seen[reference].double())
        assert figures[f"{metric}_classifier"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    expected = kid_features_to_metric(seen[key], seen["real"], kid_subsets=5, kid_subset_size=8)
    mean = expected["kernel_inception_distance_mean"]
    assert figures["kid_classifier"] == pytest.approx(mean, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("key", KEYS)
def test_manifolds_of_every_set_by_the_second_network(run, images, report, key):
    other = run[1]["other"]
    seen, real = other.features(images[key]).detach(), other.features(images["real"]).detach()
    figures = row(report, key)["figures"]
    expected = prc_features_to_metric(seen, real, prc_neighborhood=2)
    density = compute_prdc(real.double().numpy(), seen.double().numpy(), nearest_k=3)
    assert figures["precision_classifier"] == pytest.approx(expected["precision"])
    assert figures["recall_classifier"] == pytest.approx(expected["recall"])
    assert figures["density_classifier"] == pytest.approx(density["density"])
    assert figures["coverage_classifier"] == pytest.approx(density["coverage"])


def test_what_a_set_is_too_small_for_is_left_out_and_said(report):
    assert "fid_infinity_classifier" in row(report, "samples")["figures"]
    assert "fid_infinity_classifier" not in row(report, "held_out")["figures"]
    reason = "it needs 19 images"
    assert report["left_out"] == [
        {"set": key, "metric": "fid_infinity", "reason": reason} for key in ("reconstructions", "held_out")
    ]


def test_nearest_training_images(run, images, report):
    other = run[1]["other"]
    names = sorted(str(path.relative_to(run[0] / "train")) for path in (run[0] / "train").rglob("*.png"))
    spaces = {"features": other.features, "pixels": lambda found: found.flatten(1)}
    queries = [found["index"] for found in report["neighbours"]]
    assert [found["label"] for found in report["neighbours"]] == [0, 1, 2]
    assert [query % CLASSES for query in queries] == [0, 1, 2]
    for space, of in spaces.items():
        distances = torch.cdist(of(images["samples"][queries]).double(), of(images["real"]).double())
        for found, expected in zip(report["neighbours"], distances, strict=True):
            nearest = expected.argsort()[:2].tolist()
            assert [place["index"] for place in found[space]] == nearest
            assert [place["key"] + ".png" for place in found[space]] == [names[i] for i in nearest]
            assert [place["distance"] for place in found[space]] == pytest.approx(
                expected[nearest].tolist(), rel=1e-5
            )


def test_records_are_kept_and_give_the_same_figures(run, report, tmp_path):
    root, _ = run
    found = evaluate(everything(root, keep=str(root / "kept"), queries=0), data_of(root), tmp_path)
    assert "real" not in found["unreadable"]  # they were not looked at
    assert found["counts"]["real"] == NUM["train"]
    assert found["sets"] == report["sets"]
    assert found["figures"] == report["figures"]


@pytest.mark.parametrize(
    "change",
    [
        {"module": {"max_features": 12}},
        {"module": {"weights": "other.ckpt"}},
        {"data": {"max_real": 20}},
        {"data": {"real": "val"}},
        {"touch": True},
    ],
)
def test_records_of_other_images_networks_or_options_are_never_taken(run, report, tmp_path, change):
    root, _ = run
    options = (
        {"weights": str(root / change["module"]["weights"])} if "weights" in change.get("module", {}) else {}
    )
    options = {**change.get("module", {}), **options}
    data = dict(change.get("data", {}))
    if "touch" in change:
        shutil.copytree(root / "train", tmp_path / "train")
        data["train"] = str(tmp_path / "train")
        next((tmp_path / "train").rglob("*.png")).write_bytes(png(255 - noise("train")[0]))
    fresh = evaluate(everything(root, **options), data_of(root, **data), tmp_path / "fresh")
    kept = evaluate(
        everything(root, keep=str(root / "kept"), **options), data_of(root, **data), tmp_path / "kept"
    )
    assert kept["sets"] == fresh["sets"]
    assert kept["figures"] == fresh["figures"]
    assert kept["sets"] != report["sets"]


def test_a_damaged_record_is_made_again(run, report, tmp_path, caplog):
    root, _ = run
    shutil.copytree(root / "kept", tmp_path / "kept")
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    found = evaluate(everything(root, keep=str(tmp_path / "kept")), data_of(root), tmp_path)
    assert found["sets"] == report["sets"]
    assert "cannot be read" in caplog.text


def test_samples_of_others_stand_beside_ours(run, report, tmp_path):
    """Pictures without labels and an .npz, in one evaluation with ours and a best fraction of ours."""
    root, _ = run
    (tmp_path / "flat").mkdir()
    for i, image in enumerate(noise("samples")):
        (tmp_path / "flat" / f"{i:03d}.png").write_bytes(png(image))
    np.savez(tmp_path / "theirs.npz", arr_0=noise("val"), arr_1=np.arange(NUM["val"]) % CLASSES)
    scores = np.linspace(-1, 0, NUM["samples"])
    shutil.copytree(root / "samples", tmp_path / "ours")
    rows = [f"{i},{i % CLASSES},{score}" for i, score in enumerate(scores)]
    (tmp_path / "ours" / "scores.csv").write_text("\n".join(["index,label,critic_log_score", *rows, ""]))
    candidates = {"t0.9": str(tmp_path / "ours"), "flat": str(tmp_path / "flat")}
    options = {"fractions": [1.0, 0.5], "fid_infinity": None}
    found = evaluate(everything(root, **options), data_of(root, samples=candidates), tmp_path)
    keys = [entry["key"] for entry in found["sets"]]
    assert keys == ["t0.9", "t0.9@0.5", "flat", "reconstructions", "held_out"]
    known = row(report, "samples")["figures"]
    for key in ("t0.9", "flat"):
        for name, value in row(found, key)["figures"].items():
            if name in known:
                assert value == pytest.approx(known[name], rel=1e-9), (key, name)
    assert "class_accuracy" not in row(found, "flat")["figures"]
    assert {"set": "flat", "metric": "fractions"}.items() <= found["left_out"][-1].items()
    candidates = {"theirs": str(tmp_path / "theirs.npz")}
    options = {"fid_infinity": None, "autoencoder": None}
    found = evaluate(everything(root, **options), data_of(root, samples=candidates), tmp_path)
    for name, value in row(found, "held_out")["figures"].items():
        if name in ("fid_classifier", "precision_classifier", "class_accuracy"):
            assert row(found, "theirs")["figures"][name] == pytest.approx(value, rel=1e-4)


def test_the_kept_records_say_what_they_are_of(run, report):
    for path in (run[0] / "kept").iterdir():
        with np.load(path, allow_pickle=False) as file:
            identity = json.loads(file["identity"].item())
        assert path.name.startswith(identity["set"])
        assert identity["network"]["name"] == "classifier"
        assert (identity["autoencoder"] is None) == (identity["set"] == "real")
