"""Table 2: ours beside the paper's, each number in its place."""

import json
from pathlib import Path

import pytest

from tests.experiments.real_run import real_accuracy

REPORT = {
    "format": "vqvae2-accuracy-1",
    "trained_on": "runs/x/samples",
    "num_train": 1000,
    "num_images": 465,
    "real": {"top1": 0.91183, "top5": 0.99139, "by_class": []},
    "reconstructed": {"top1": 0.93547, "top5": 0.99354, "by_class": []},
    "data": "demo:digits (holdout 0.1, seed 0)",
    "checkpoint": "runs/x/cas/last.ckpt",
    "step": 450,
    "command": "lightning test -c configs/x_cas.yaml",
}


@pytest.fixture
def table2(experiment):
    return experiment("table2")


@pytest.fixture
def run(tmp_path):
    """Of a data set x with four classes: no top-5."""
    write(tmp_path / "x", "cas", REPORT)
    real = {"top1": 0.98709, "top5": None, "by_class": []}
    write(tmp_path / "x", "classifier", {**REPORT, "real": real, "reconstructed": None})
    return tmp_path / "x"


def write(run, name, report):
    (run / name).mkdir(parents=True, exist_ok=True)
    (run / name / "accuracy.json").write_text(json.dumps(report))


def test_the_files_here_are_as_a_test_writes_them():
    for found in (REPORT, REPORT["real"]):
        assert found.keys() <= (real_accuracy() | real_accuracy()["real"]).keys()


def printed(table2, monkeypatch, capsys, run):
    monkeypatch.setattr("sys.argv", ["table2.py", str(run)])
    table2.main()
    return capsys.readouterr().out


def test_ours_stand_beside_the_papers(table2, run, monkeypatch, capsys):
    text = printed(table2, monkeypatch, capsys, run)
    rows = {tuple(line.split()[:-4]): line.split()[-4:] for line in text.splitlines()[2:6]}
    assert rows == {  # section 5.3, table 2; ours to two digits of a percent
        ("BigGAN-deep", "real"): ["42.65", "65.92", "-", "-"],
        ("VQ-VAE-2", "real"): ["54.83", "77.59", "91.18", "99.14"],
        ("VQ-VAE-2", "reconstructed"): ["58.74", "80.98", "93.55", "99.35"],
        ("real", "data", "real"): ["73.09", "91.47", "98.71", "-"],
    }
    assert (
        "1,000 images of runs/x/samples, 450 steps; tested on 465 of demo:digits (holdout 0.1, seed 0)"
        in text
    )
    assert "not tested on the same images" not in text


def test_a_ceiling_that_the_paper_lacks_has_a_row_and_other_images_are_named(
    table2, run, monkeypatch, capsys
):
    write(run, "classifier", {**REPORT, "data": "other"})
    text = printed(table2, monkeypatch, capsys, run)
    assert text.splitlines()[6].split() == ["real", "data", "reconstructed", "-", "-", "93.55", "99.35"]
    assert text.endswith("not tested on the same images: demo:digits (holdout 0.1, seed 0), other.\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            Path.unlink,
            "cas/accuracy.json does not exist. .*: lightning fit -c configs/x_cas.yaml && lightning test",
        ),
        (
            lambda path: path.write_text("{"),
            "accuracy.json is not JSON .*lightning test -c configs/x_cas.yaml",
        ),
        (
            lambda path: path.write_text("{}"),
            "is no 'vqvae2-accuracy-1'. .*lightning test -c configs/x_cas.yaml",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_command(table2, run, monkeypatch, capsys, damage, message):
    damage(run / "cas" / "accuracy.json")
    with pytest.raises(SystemExit, match=message):
        printed(table2, monkeypatch, capsys, run)
