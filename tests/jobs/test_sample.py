"""The sample job: labels → codes → images → shards."""

import csv
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import IMAGE_SIZE, latent_spec, save, save_autoencoder, save_chain, save_prior
from tests.ranks import run_ranks
from tests.sample_job import read, sample
from vqvae2.data.sources import open_source
from vqvae2.jobs.requests import SampleRequests
from vqvae2.nn.classifier import Classifier
from vqvae2.pixels import to_uint8
from vqvae2.sampling.chain import ChainSampler
from vqvae2.storage.checkpoint import load_network


def without_rounding(samples):
    """Without the likelihoods, whose last digits depend on how many images a product is computed for."""
    return {
        key: {name: members[name] for name in members if name != "json"} for key, members in samples.items()
    }


@torch.no_grad()
def test_samples_are_the_decoded_codes_of_the_classes_asked_for(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    samples = read(sample(tmp_path / "samples", autoencoder, priors, seed=3))
    assert list(samples) == [f"{i:08d}" for i in range(12)]
    for i, members in enumerate(samples.values()):
        arrays = [np.load(io.BytesIO(members[f"{name}.npy"])) for name in ("top", "bottom")]
        codes = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
        image = np.asarray(Image.open(io.BytesIO(members["png"])))
        assert np.array_equal(image, to_uint8(network.decode([level[None] for level in codes]))[0, 0].numpy())
        assert int(members["cls"]) == i % 3
        facts = json.loads(members["json"])
        assert (facts["seed"], facts["image"]) == (3, i)
        for level, checkpoint in enumerate(priors):
            prior = load_network(checkpoint, "prior").network
            logits = prior(codes[level][None], [c[None] for c in codes[:level]], torch.tensor([i % 3]))
            nll = torch.nn.functional.cross_entropy(logits, codes[level][None], reduction="sum")
            assert facts["nll_nats"][("top", "bottom")[level]] == pytest.approx(nll.item(), rel=1e-5)


def test_the_folder_describes_itself_and_can_be_evaluated(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    folder = sample(tmp_path / "samples", autoencoder, priors)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_samples"] == 12
    assert [shard["num_samples"] for shard in manifest["shards"]] == [5, 5, 2]
    assert manifest["autoencoder"] == latent_spec(network, 3).autoencoder
    source = open_source(str(folder))
    assert len(source) == 12
    assert [source.label(i) for i in range(3)] == [0, 1, 2]
    assert Image.open(folder / "grid.png").size == (3 * 17 + 1, 2 * 17 + 1)


def test_an_image_does_not_depend_on_batches_files_or_classes_beside_it(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    all_of_them = without_rounding(read(sample(tmp_path / "a", autoencoder, priors)))
    in_one = read(sample(tmp_path / "b", autoencoder, priors, batch_size=12, chunk_size=100))
    assert without_rounding(in_one) == all_of_them
    fewer = without_rounding(read(sample(tmp_path / "c", autoencoder, priors, per_class=2)))
    assert fewer == {key: all_of_them[key] for key in fewer}


def test_two_ranks_write_what_one_writes(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)

    def work():
        os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())  # Lightning then starts no processes
        sample(tmp_path / "two", autoencoder, priors)

    run_ranks(work)
    alone = sample(tmp_path / "one", autoencoder, priors)
    assert without_rounding(read(tmp_path / "two")) == without_rounding(read(alone))
    assert (tmp_path / "two" / "grid.png").read_bytes() == (alone / "grid.png").read_bytes()


def test_a_model_without_classes_samples_images_without_labels(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path, num_classes=0)
    samples = read(sample(tmp_path / "samples", autoencoder, priors, per_class=4))
    assert len(samples) == 4
    assert all("cls" not in members for members in samples.values())


WRONG_DRAWS = [
    ({"temperatures": [1.0, 0.0]}, "Level bottom: temperature is 0.0, wanted above 0"),
    ({"temperatures": [-0.5, 1.0]}, "Level top: temperature is -0.5"),
    ({"temperatures": [1.0]}, r"temperatures is \[1.0\], wanted one for each of the 2 priors"),
    ({"top_k": [0, None]}, "Level top: top_k is 0, wanted 1 to 16"),
    ({"top_k": [None, 17]}, "Level bottom: top_k is 17"),
    ({"top_k": []}, r"top_k is \[\], wanted one for each"),
    ({"top_p": [None, 1.5]}, "Level bottom: top_p is 1.5"),
    ({"top_p": [0.5, 0.5, 0.5]}, r"top_p is .*, wanted one for each of the 2"),
]


def test_impossible_requests_are_refused(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    with pytest.raises(ValueError, match="no class 3: the priors know 0 to 2"):
        sample(tmp_path / "samples", autoencoder, priors, classes=[1, 3])
    with pytest.raises(ValueError, match="classes is empty"):
        sample(tmp_path / "samples", autoencoder, priors, classes=[])
    for wrong, message in WRONG_DRAWS:
        with pytest.raises(ValueError, match=message):
            sample(tmp_path / "samples", autoencoder, priors, **wrong)
    with pytest.raises(ValueError, match=r"levels bottom, top; .* needs top, bottom"):
        sample(tmp_path / "samples", autoencoder, priors[::-1])
    with pytest.raises(ValueError, match=r"0\.ckpt holds a network of kind 'prior', wanted 'autoencoder'"):
        sample(tmp_path / "samples", priors[0], priors)
    assert not (tmp_path / "samples").exists()


def test_priors_of_different_latents_are_refused(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    unlabelled = save_prior(tmp_path / "unlabelled.ckpt", latent_spec(network, 0), 1)
    with pytest.raises(ValueError, match=r"with 3 classes, .*unlabelled.ckpt learned .* with 0 classes"):
        sample(tmp_path / "samples", autoencoder, [priors[0], unlabelled])


def test_priors_of_another_autoencoder_are_refused_with_both_fingerprints(tmp_path):
    network, autoencoder, priors = save_chain(tmp_path)
    _, other = save_autoencoder(tmp_path / "other.ckpt", seed=1)
    strange = save_prior(tmp_path / "strange.ckpt", latent_spec(other, 3), 1)
    with pytest.raises(ValueError, match="make encode-latents") as error:
        sample(tmp_path / "samples", autoencoder, [priors[0], strange])
    for each in (network, other):
        assert latent_spec(each, 3).autoencoder[:16] in str(error.value)


def pattern(per_class, num_classes=10, **options):
    return SampleRequests(per_class=per_class, batch_size=1, **options).pattern(num_classes)


def test_labels_repeat_in_the_proportions_asked_for():
    assert pattern(7, classes=[4, 2]) == [4, 2]
    assert pattern(7, num_classes=3) == [0, 1, 2]
    assert pattern(7, num_classes=0) == [-1]
    assert pattern({3: 100, 7: 20}) == [3, 7, 3, 3, 3, 3]
    assert pattern({3: 200, 7: 40}) == pattern({3: 100, 7: 20})
    assert pattern({3: 101, 7: 20}) == [3, 7] * 20 + [3] * 81


def test_as_many_of_each_class_as_asked_for(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    samples = read(sample(tmp_path / "a", autoencoder, priors, per_class={2: 4, 0: 2}))
    assert [int(members["cls"]) for members in samples.values()] == [2, 0, 2] * 2
    more = read(sample(tmp_path / "b", autoencoder, priors, per_class={2: 8, 0: 4}))
    assert without_rounding(samples) == without_rounding({key: more[key] for key in samples})


def test_counts_that_make_no_request_are_refused():
    wrong = [
        ({"per_class": {3: 0}}, "per_class 3 is 0, wanted at least 1"),
        ({"per_class": {}}, "per_class is empty"),
        ({"per_class": {3: 1}, "classes": [3]}, "per_class and classes both name classes"),
        ({"per_class": 2, "classes": [3, 3]}, "wanted each once"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            SampleRequests(batch_size=1, **options)
    with pytest.raises(ValueError, match="no class 10: the priors know 0 to 9"):
        pattern({3: 1, 10: 1})
    with pytest.raises(ValueError, match="asked for, but the priors have no classes"):
        pattern({3: 1}, num_classes=0)


def test_the_likeliest_code_is_drawn_where_there_is_no_other_choice(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    options = {"per_class": 1, "writer": {"grid_columns": 1}}
    coldest = sample(tmp_path / "a", autoencoder, priors, temperatures=[1e-6, 1e-6], **options)
    first = sample(tmp_path / "b", autoencoder, priors, top_k=[1, 1], **options)
    narrow = sample(tmp_path / "c", autoencoder, priors, top_p=[1e-6, None], top_k=[None, 1], **options)
    assert read(coldest) == read(first) == read(narrow)
    assert read(first) != read(sample(tmp_path / "d", autoencoder, priors, **options))


def test_what_is_approximate_says_so(tmp_path, capsys):
    _, autoencoder, priors = save_chain(tmp_path)
    folder = sample(tmp_path / "a", autoencoder, priors, temperatures=[1.0, 0.9], top_k=[3, None])
    assert "top_k 3 on top, temperature 0.9 on bottom" in capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["approximate"]
    assert manifest["draws"]["bottom"] == {"temperature": 0.9, "top_k": None, "top_p": None}
    exact = sample(tmp_path / "b", autoencoder, priors)
    assert "Approximate" not in capsys.readouterr().out
    assert not json.loads((exact / "manifest.json").read_text())["approximate"]


def save_classifier(path, num_classes=3, image_size=IMAGE_SIZE):
    torch.manual_seed(1)
    options = {"num_classes": num_classes, "channels": 1, "architecture": "small", "widths": [4], "blocks": 1}
    classifier = Classifier(**options).eval()
    facts = {"image_size": image_size, "classes": [str(label) for label in range(num_classes)]}
    return save(path, classifier, kind="classifier", network=options, **facts), classifier


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@torch.no_grad()
def test_scores_are_those_of_the_stored_images_and_classes(tmp_path, precision):
    """In float32, however the samples were made."""
    _, autoencoder, priors = save_chain(tmp_path)
    path, classifier = save_classifier(tmp_path / "scorer.ckpt")
    folder = sample(tmp_path / "samples", autoencoder, priors, rejection_classifier=path, precision=precision)
    with (folder / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    samples = read(folder)
    assert len(table) == len(samples)
    for row, (key, members) in zip(table, samples.items(), strict=True):
        facts = json.loads(members["json"])
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(members["png"])), np.float32) / 127.5 - 1)
        label = int(members["cls"])
        score = classifier(image[None, None]).log_softmax(1)[0, label].item()
        assert facts["critic_log_score"] == pytest.approx(score, abs=1e-5)
        assert (int(row["index"]), int(row["label"])) == (int(key), label)
        assert float(row["critic_log_score"]) == facts["critic_log_score"]
        assert float(row["nll_bottom"]) == facts["nll_nats"]["bottom"]
    assert len({row["critic_log_score"] for row in table}) > 3
    assert json.loads((folder / "manifest.json").read_text())["critic"] == path


def test_rejection_classifiers_of_other_classes_or_sizes_are_refused(tmp_path):
    _, autoencoder, priors = save_chain(tmp_path)
    for options, message in ({"num_classes": 4}, "num_classes 4"), ({"image_size": 24}, "image_size 24"):
        path, _ = save_classifier(tmp_path / "scorer.ckpt", **options)
        with pytest.raises(ValueError, match=f"scorer.ckpt was trained for .*{message}"):
            sample(tmp_path / "samples", autoencoder, priors, rejection_classifier=path)


def out_of_memory_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory")


def out_of_memory_on_a_processor():
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("fail", [out_of_memory_on_a_gpu, out_of_memory_on_a_processor])
def test_a_batch_that_does_not_fit_names_one_that_may(tmp_path, monkeypatch, fail):
    """What fits is three images."""
    _, autoencoder, priors = save_chain(tmp_path)
    call = ChainSampler.__call__

    def limited(self, labels, **options):
        return fail() if len(labels) > 3 else call(self, labels, **options)

    monkeypatch.setattr(ChainSampler, "__call__", limited)
    for size, smaller in ((5, 2), (4, 2)):
        message = rf"{size} images at once do not fit .* device cpu\. Set data\.batch_size to {smaller}, "
        with pytest.raises(ValueError, match=message):
            sample(tmp_path / "samples", autoencoder, priors, batch_size=size)
    sample(tmp_path / "samples", autoencoder, priors, batch_size=2)
    monkeypatch.setattr(ChainSampler, "__call__", lambda *_, **__: fail())
    with pytest.raises(ValueError, match=r"One image alone does not fit .*precision bf16-true"):
        sample(tmp_path / "others", autoencoder, priors, batch_size=1)


def test_other_errors_of_a_batch_stay_what_they_are(tmp_path, monkeypatch):
    _, autoencoder, priors = save_chain(tmp_path)

    def fail(*_, **__):
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(ChainSampler, "__call__", fail)
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        sample(tmp_path / "samples", autoencoder, priors)
