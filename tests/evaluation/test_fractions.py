"""Rejection sampling in the evaluation: every figure of a fraction computed again by hand."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from tests.evaluation.evaluation_run import (
    CLASSES,
    CLASSIFIER,
    NUM,
    SIZE,
    SPLITS,
    by_class,
    data_of,
    evaluate,
    floats,
    make_run,
    module_of,
    noise,
    row,
    save,
    write_scores,
)
from tests.metrics.reference import nuclear_norm_form
from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.nn.classifier import Classifier
from vqvae2.nn.weights import fingerprint

FRACTIONS = [1.0, 0.5, 0.25]
LABELS = np.arange(NUM["samples"]) % CLASSES
OF_SAMPLES = {"autoencoder": None, "priors": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    networks = make_run(root)
    torch.manual_seed(5)
    classifier = Classifier(**CLASSIFIER)
    with torch.no_grad():
        classifier.head.weight.mul_(100)
    facts = {"image_size": SIZE, "classes": [f"class{i}" for i in range(CLASSES)]}
    networks["scorer"] = save(root / "scorer.ckpt", "classifier", classifier, CLASSIFIER, **facts)
    return root, networks


@pytest.fixture(scope="module")
def scores(run):
    root, networks = run
    logits = networks["scorer"](floats(noise("samples"))).double()
    found = logits.log_softmax(1).gather(1, torch.from_numpy(LABELS)[:, None]).squeeze(1)
    write_scores(root / "samples", found.tolist())
    return found.detach().numpy()


@pytest.fixture(scope="module")
def report(run, scores, tmp_path_factory):
    root, _ = run
    return evaluate(module_of(root, fractions=FRACTIONS), data_of(root), tmp_path_factory.mktemp("eval"))


def best(scores, fraction):
    """Numbers of the samples, in the order of the data."""
    kept = []
    for label in range(CLASSES):
        mine = sorted(np.flatnonzero(label == LABELS), key=lambda i: -scores[i])
        kept += mine[: math.ceil(fraction * len(mine))]
    return sorted(kept)


def expected_figures(networks, chosen):
    classifier = networks["classifier"]
    features = classifier.features(floats(noise("samples")[chosen]))
    logits = classifier.head(features)
    real = classifier.features(by_class(noise("train"))[0])
    score = isc_features_to_metric(logits, splits=SPLITS)
    return {
        "fid_classifier": nuclear_norm_form(features.double(), real.double()),
        "is_classifier": score["inception_score_mean"],
        "class_accuracy": (logits.argmax(1).numpy() == LABELS[chosen]).mean(),
    }


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_figures_of_a_fraction_are_those_of_the_samples_kept(run, scores, report, fraction):
    chosen = best(scores, fraction)
    found = row(report, "samples" if fraction == 1 else f"samples@{fraction}")
    for key, value in expected_figures(run[1], chosen).items():
        assert found["figures"][key] == pytest.approx(value, rel=1e-4), key
    assert found["figures"]["critic_log_score"] == pytest.approx(
        np.mean([scores[[i for i in chosen if LABELS[i] == label]].mean() for label in range(CLASSES)])
    )
    assert found["num_images"] == len(chosen)
    assert found["fraction"] == fraction
    assert report["rejection"]["kept"]["samples"][str(fraction)] == len(chosen)


def test_all_of_the_samples_get_the_figures_of_a_plain_evaluation(run, report, tmp_path):
    root, _ = run
    plain = evaluate(module_of(root), data_of(root), tmp_path)
    for key in ("samples", "reconstructions", "held_out"):
        figures = row(plain, key)["figures"]
        assert {name: row(report, key)["figures"][name] for name in figures} == figures
    assert report["figures"] == plain["figures"]
    assert {key: report["legend"][key] for key in plain["legend"]} == plain["legend"]
    assert plain["rejection"] is None


def test_the_mean_score_rises_as_the_fraction_falls(report):
    keys = ("samples", "samples@0.5", "samples@0.25")
    means = [row(report, key)["figures"]["critic_log_score"] for key in keys]
    assert means == sorted(means)
    assert len(set(means)) == 3


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_evaluation_scores_the_samples_itself(run, report, tmp_path, num_ranks):
    root, networks = run

    def on_a_rank():
        folder = tmp_path / str(distributed.rank())
        options = {"fractions": FRACTIONS, "rejection_classifier": str(root / "scorer.ckpt"), **OF_SAMPLES}
        return evaluate(module_of(root, **options), data_of(root, samples=str(root / "unscored")), folder)

    if not (root / "unscored").exists():
        shutil.copytree(root / "samples", root / "unscored", ignore=shutil.ignore_patterns("scores.csv"))
    for found in run_ranks(on_a_rank, num_ranks):
        assert found["rejection"]["kept"] == report["rejection"]["kept"]
        for mine in found["sets"]:
            theirs = row(report, mine["key"])["figures"]
            for key, value in mine["figures"].items():
                assert value == pytest.approx(theirs[key], rel=1e-5), key
        assert found["rejection"]["critic"] == str(root / "scorer.ckpt")
        assert found["rejection"]["fingerprints"] == {"samples": fingerprint(networks["scorer"])}


def test_the_same_number_of_each_fraction(run, scores, tmp_path):
    root, networks = run
    module = module_of(root, fractions=[0.5, 1.0], samples_each=7, **OF_SAMPLES)
    found = evaluate(module, data_of(root), tmp_path)
    assert [row(found, key)["num_images"] for key in ("samples", "samples@0.5")] == [7, 7]
    assert found["rejection"]["kept"] == {"samples": {"1.0": 19, "0.5": 10}}
    kept = best(scores, 0.5)
    turns = sorted(kept, key=lambda i: ([j for j in kept if LABELS[j] == LABELS[i]].index(i), i))
    for at, chosen in (("", range(7)), ("@0.5", sorted(turns[:7]))):
        for key, value in expected_figures(networks, list(chosen)).items():
            assert row(found, "samples" + at)["figures"][key] == pytest.approx(value, rel=1e-4), key + at


def test_figures_by_the_rejection_classifier_itself_say_so(run, scores, report, tmp_path):
    root, _ = run
    assert report["legend"]["class_accuracy"]["name"] == "recognised as their class"
    itself = {"fractions": [1.0, 0.25], "rejection_classifier": str(root / "classifier.ckpt"), **OF_SAMPLES}
    found = evaluate(module_of(root, **itself), data_of(root), tmp_path)
    name = "recognised as their class, by the rejection classifier itself"
    assert found["legend"]["class_accuracy"]["name"] == name
    # Scores of the sample job, whose classifier is named in its job.json.
    job = {"identity": {"critic": found["rejection"]["fingerprints"]["samples"]}, "num_samples": {}}
    shutil.copytree(root / "samples", tmp_path / "samples")
    (tmp_path / "samples" / "job.json").write_text(json.dumps(job))
    module = module_of(root, fractions=[0.25], **OF_SAMPLES)
    found = evaluate(module, data_of(root, samples=str(tmp_path / "samples")), tmp_path)
    assert found["legend"]["class_accuracy"]["name"] == name


def test_the_table_has_a_column_for_each_set(run, scores, tmp_path, capsys):
    root, _ = run
    module = module_of(root, fractions=[0.25, 1.0], **{**OF_SAMPLES, "autoencoder": str(root / "vqvae.ckpt")})
    found = evaluate(module, data_of(root), tmp_path)
    rows = {line.partition("  ")[0]: line.split("  ")[1:] for line in capsys.readouterr().out.splitlines()}
    columns = {name: " ".join(values).split() for name, values in rows.items()}
    keys = ["samples", "samples@0.25", "reconstructions", "held_out"]
    assert columns[""] == keys
    assert columns["images"] == ["19", "6", "9", "9"]
    fids = [f"{row(found, key)['figures']['fid_classifier']:.5g}" for key in keys]
    assert columns["FID (classifier)"] == fids
    mse = found["figures"]["mse_val"]
    assert columns["MSE of reconstructions, held-out images, pixels in [-1, 1]"] == [f"{mse:.5g}"]


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            {"fractions": [0.1]},
            {},
            r"0\.1 keeps 3 of the 19 samples 'samples', wanted at least 4\. 40 samples are enough",
        ),
        ({"fractions": [0.1], "splits": 1, "samples_each": 12}, {}, "keeps 3 .* at least 12. 120 samples"),
        ({"samples_each": 3, "fractions": [1.0]}, {}, "3 of the samples .* is needs at least 4"),
        ({}, {"num_classes": 0}, "these have no classes: leave out model.init_args.rejection_classifier"),
        ({"rejection_classifier": "vqvae.ckpt"}, {}, "kind 'autoencoder', wanted 'classifier'"),
        ({"rejection_classifier": "absent.ckpt"}, {}, "no checkpoint .*absent.ckpt"),
        (
            {"rejection_classifier": "torchvision:resnet7"},
            {},
            "no classifier 'torchvision:resnet7', wanted .* resnet50",
        ),
        (
            {"rejection_classifier": "others.ckpt"},
            {},
            r"others.ckpt was trained for .*num_classes 7.* num_classes 3",
        ),
        (
            {"rejection_classifier": "renamed.ckpt"},
            {},
            r"classes a, b, c, but the data has class0, class1, class2",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(run, scores, tmp_path, model, data, message):
    root, networks = run
    facts = {"image_size": SIZE, "classes": list("abc")}
    save(root / "renamed.ckpt", "classifier", networks["scorer"], CLASSIFIER, **facts)
    seven = {**CLASSIFIER, "num_classes": 7}
    save(
        root / "others.ckpt",
        "classifier",
        Classifier(**seven),
        seven,
        image_size=SIZE,
        classes=list("abcdefg"),
    )
    if model.get("rejection_classifier", "").endswith(".ckpt"):
        model = {**model, "rejection_classifier": str(root / model["rejection_classifier"])}
    module = module_of(root, **{"fractions": [0.5], **OF_SAMPLES, **model})
    with pytest.raises(ValueError, match=message):
        evaluate(module, data_of(root, latents=None, **data), tmp_path)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("fractions", [[], [0.5, 0.5], [0.0], [1.5], [1.0, -0.1]])
def test_fractions_that_mean_nothing(run, fractions):
    with pytest.raises(ValueError, match=r"wanted (different ones|above 0)"):
        module_of(run[0], fractions=fractions)


def test_scores_that_are_missing_or_of_other_samples(run, tmp_path):
    root, _ = run
    folder = tmp_path / "samples"
    shutil.copytree(root / "samples", folder)
    (folder / "scores.csv").unlink(missing_ok=True)
    command = (
        "lightning predict -c configs/X_sample.yaml --model.rejection_classifier runs/X/classifier/last.ckpt"
    )
    refuses(root, folder, f"no {folder / 'scores.csv'}.*{command}")
    good = [-0.1] * NUM["samples"]
    write_scores(folder, [""] * NUM["samples"])
    refuses(root, folder, f"has no scores.*{command}")
    write_scores(folder, good[:-1])
    refuses(root, folder, r"no score of 000000/000018\.png")
    write_scores(folder, good, labels=[1] * NUM["samples"])
    refuses(root, folder, r"000000/000000\.png is of class 1, its \.cls member says 0")
    write_scores(folder, [*good[:-1], "nan"])
    refuses(root, folder, "1 of 19 scores are not a number")
    write_scores(folder, [*good[:-1], "high"])
    refuses(root, folder, r"scores\.csv, line 20, does not hold a sample's numbers")
    (folder / "scores.csv").write_text("index,label\n0,0\n")
    refuses(root, folder, "has no column critic_log_score")


def refuses(root, samples, message):
    module = module_of(root, fractions=[0.5], **OF_SAMPLES)
    with pytest.raises(ValueError, match=message):
        evaluate(module, data_of(root, samples=str(samples), latents=None), samples)
    assert not (samples / "metrics.json").exists()
