"""A small data set's evaluation needs no error round: sizes fit, and the run's classifier stands in."""

import http.client
import shutil

import pytest
import torch

from tests.evaluation.evaluation_run import data_of, evaluate, make_run, module_of, row
from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics import features
from vqvae2.metrics.quality import InfinitySizes, KernelSubsets, Neighbourhoods

AUTO = {
    "splits": "auto",
    "kid": KernelSubsets(subsets=5),
    "fid_infinity": InfinitySizes(points=4),
    "manifold": Neighbourhoods(),
}
FITTED = {  # 19 samples, 23 real images, 9 held-out
    "splits": 9,
    "kid": KernelSubsets(subsets=5, subset_size=9),
    "fid_infinity": InfinitySizes(points=4, smallest=3, largest=19),
    "manifold": Neighbourhoods(k_precision=3, k_density=5),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    make_run(root)
    return root


def figures_of(report):
    return {found["key"]: found["figures"] for found in report["sets"]}


def test_sizes_that_fit_give_the_figures_that_the_same_numbers_give(run, tmp_path, capsys):
    found = evaluate(module_of(run, **AUTO), data_of(run), tmp_path / "auto")
    said = capsys.readouterr().out
    wanted = evaluate(module_of(run, **FITTED), data_of(run), tmp_path / "numbers")
    assert figures_of(found) == figures_of(wanted)
    assert found["settings"] == wanted["settings"]
    assert found["settings"]["kid"] == {"subsets": 5, "subset_size": 9}
    assert wanted["notes"] == []
    assert len(found["notes"]) == 3
    assert all(f"Note: {note}\n" in said for note in found["notes"])
    assert {"kid_classifier", "precision_classifier", "is_classifier"} <= row(found, "held_out")[
        "figures"
    ].keys()


def test_images_that_cannot_be_read_make_the_sizes_smaller(run, tmp_path):
    shutil.copytree(run / "train", tmp_path / "train")
    for path in sorted((tmp_path / "train").rglob("*.png"))[:19]:
        path.write_bytes(b"no image")

    def evaluation():
        module = module_of(run, autoencoder=None, priors=None, **AUTO, keep=str(tmp_path / "kept"))
        return evaluate(module, data_of(run, train=str(tmp_path / "train"), latents=None), tmp_path)

    found = evaluation()
    assert found["counts"]["real"] == 4
    assert found["settings"]["kid"]["subset_size"] == 4
    assert found["settings"]["manifold"] == {"k_precision": 3, "k_density": 3}
    assert "density_classifier" in row(found, "samples")["figures"]
    data = data_of(run, train=str(tmp_path / "train"), latents=None)
    again = evaluate(
        module_of(run, autoencoder=None, priors=None, **AUTO, keep=str(tmp_path / "kept")), data, tmp_path
    )
    assert figures_of(again) == figures_of(found)  # from what was kept


INCEPTION = {"features": "inception-v3-compat", "weights": None, "manifold_features": "vgg16"}


@pytest.fixture
def offline(monkeypatch):
    def download(name):
        raise http.client.HTTPException("no network")

    monkeypatch.setattr(features, "download", download)


def beside(run, folder):
    """The classifier of the run `folder`, and where its evaluation goes."""
    (folder / "classifier").mkdir(parents=True)
    shutil.copy(run / "classifier.ckpt", folder / "classifier" / "last.ckpt")
    return folder / "eval"


def test_without_a_network_the_runs_classifier_stands_in_and_its_figures_say_so(
    run, tmp_path, offline, capsys
):
    folder = beside(run, tmp_path / "pets")
    found = evaluate(module_of(run, **AUTO | INCEPTION), data_of(run), folder)
    said = capsys.readouterr().out
    wanted = evaluate(module_of(run, **AUTO), data_of(run), tmp_path / "named")
    assert figures_of(found) == figures_of(wanted)
    assert found["legend"]["fid_classifier"]["name"] == "FID (classifier)"
    stand_in = str(folder.parent / "classifier" / "last.ckpt")
    for role, name in (("distance", "inception-v3-compat"), ("manifold", "vgg16")):
        assert found["networks"][role]["name"] == "classifier"
        assert found["networks"][role]["weights"] == stand_in
        assert said.count(f"the weights of {name} are not available here; {stand_in} is used instead.") == 1


def test_with_neither_the_error_names_both_ways(run, tmp_path, offline):
    with pytest.raises(
        ValueError, match=r"cannot be downloaded \(no network\).*model.init_args.weights"
    ) as error:
        evaluate(module_of(run, **INCEPTION), data_of(run), tmp_path / "pets" / "eval")
    assert f"there is none: {tmp_path / 'pets' / 'classifier' / 'last.ckpt'}" in str(error.value)


def test_a_file_that_is_named_and_not_there_is_no_reason_for_another_network(run, tmp_path, offline):
    folder = beside(run, tmp_path / "pets")
    with pytest.raises(ValueError, match=r"no file absent.pth with the weights of 'inception-v3-compat'"):
        evaluate(module_of(run, **INCEPTION | {"weights": "absent.pth"}), data_of(run), folder)


def test_ranks_of_which_one_has_no_network_look_through_the_same_one(run, tmp_path, monkeypatch):
    """Rank 0 could download what rank 1 cannot."""
    folder = beside(run, tmp_path / "pets")

    def on_a_rank():
        def download(name):
            if distributed.rank():
                raise OSError("no network")
            return "weights"

        monkeypatch.setattr(features, "download", download)
        monkeypatch.setattr(features, "create_extractor", _create(features.create_extractor))
        module = module_of(run, **INCEPTION | {"manifold_features": None})
        return evaluate(module, data_of(run), folder.parent / f"eval{distributed.rank()}")

    found = run_ranks(on_a_rank, 2)
    assert [each["networks"]["distance"]["name"] for each in found] == ["classifier"] * 2


def _create(create):
    def created(name, layers, path):
        return torch.nn.Linear(1, 1) if name == "inception-v3-compat" else create(name, layers, path)

    return created
