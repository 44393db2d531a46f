"""Table 1 and figure 7: every figure in its place, every job with its command."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from tests.experiments.fake_evaluation import RUN, fake_evaluation, sample_set, sets

ROOT = Path(__file__).parents[2]


def write(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(fake_evaluation(**changes)))
    return folder


def run(monkeypatch, module, *args):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, args)])
    module.main()


def test_table_1_puts_any_number_of_levels_beside_the_papers(experiment, tmp_path, monkeypatch, capsys):
    three = {"nll_mid_train": 1.234, "nll_mid_val": 1.345, **RUN}
    write(tmp_path / "faces" / "eval", figures=three)
    flat = write(tmp_path / "flat", figures={"nll_top_val": 0.5, "mse_val": 0.25})
    run(monkeypatch, experiment("table1"), tmp_path / "faces", flat / "metrics.json", "--markdown")
    lines = capsys.readouterr().out.splitlines()
    rows = {
        cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in lines[2:6])
    }
    assert rows == {
        "NLL top, nats a code": ["3.40", "3.41", "2.04", "2.14", "-", "0.50"],
        "NLL mid, nats a code": ["-", "-", "1.23", "1.34", "-", "-"],
        "NLL bottom, nats a code": ["3.45", "3.45", "1.62", "1.65", "-", "-"],
        "MSE, pixels in [-1, 1]": ["0.0047", "0.0050", "0.0211", "0.0222", "-", "0.2500"],
    }
    assert [part.strip().rpartition(", ")[2] for part in lines[0].split("|")[2:-1]] == [
        "train",
        "validation",
    ] * 3
    assert lines[1].count("---:") == 6
    assert "cannot be compared" in lines[-1]


def test_plain_columns_are_aligned(experiment, capsys):
    experiment("evaluations").print_table([["", "a", "long"], ["name", "1.25", "2"]])
    assert capsys.readouterr().out == "         a  long\nname  1.25     2\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "holds no metrics.json. Evaluate the run first: make eval-fid CONFIG=demo"),
        ({"format": "old"}, "has the format old, wanted vqvae2-verdict-2. Make it again: make eval-fid"),
        ({"figures": {"usage_top": 1}}, "neither likelihoods nor errors"),
    ],
)
def test_what_holds_no_table_is_refused(experiment, tmp_path, monkeypatch, changes, message):
    if changes is not None:
        write(tmp_path / "demo" / "eval", **changes)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, experiment("table1"), tmp_path / "demo")


@pytest.fixture
def jobs(monkeypatch):
    """Commands that are run, which leave an evaluation where they are told to."""
    ran = []

    def spy(command, check):
        assert command[:3] == [sys.executable, "-m", "vqvae2.cli"]
        ran.append(command[3:])
        if command[3] == "test":
            write(Path(command[command.index("--trainer.default_root_dir") + 1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", spy)
    return ran


@pytest.fixture
def in_clone(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_figure_7_draws_at_each_temperature_and_evaluates_once(
    experiment, jobs, in_clone, monkeypatch, capsys
):
    extra = ["--sample-options", "--data.per_class 7", "--eval-options", "--model.samples_each 5"]
    fractions = ["--fractions", "1", "0.5"]
    run(monkeypatch, experiment("figure7"), "demo", "--temperatures", "0.7", "0.9,1.0", *fractions, *extra)
    places = {"t0.7": "runs/demo/figure7/t0.7", "t0.9-1.0": "runs/demo/figure7/t0.9-1.0"}
    drawn = []
    for levels, place in zip(("[0.7, 0.7]", "[0.9, 1.0]"), places.values(), strict=True):
        drawn.append(["predict", "-c", "configs/demo_sample.yaml", "--model.temperatures", levels])
        drawn[-1] += ["--trainer.default_root_dir", place, "--trainer.callbacks.init_args.folder", place]
        drawn[-1] += ["--data.per_class", "7"]
    evaluated = ["test", "-c", "configs/demo_eval.yaml", "--data.samples", json.dumps(places)]
    evaluated += ["--trainer.default_root_dir", "runs/demo/figure7/eval", "--model.fractions", "[1.0, 0.5]"]
    assert jobs == [*drawn, [*evaluated, "--model.samples_each", "5"]]
    assert Image.open("runs/demo/figure7/figure7.png").width > 1000
    printed = capsys.readouterr().out
    assert "The paper's FID" in printed
    assert "originals: 2" in printed


def test_the_command_line_takes_those_commands(experiment, in_clone):
    """Of three levels: parsed by the suite's own parser, up to loading what does not exist here."""
    from vqvae2.cli.suite import SuiteCLI

    given = {"sample_options": "", "eval_options": "", "fractions": [1.0, 0.1]}
    options = argparse.Namespace(config="ffhq", temperatures=["0.8", "1,1,0.9"], **given)
    *samples, test = experiment("figure7").commands(options)

    class Parse(SuiteCLI):
        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    found = [Parse(command).config.predict for command in samples]
    assert [config.model.init_args.temperatures for config in found] == [[0.8] * 3, [1.0, 1.0, 0.9]]
    assert [config.trainer.callbacks[0].init_args.folder for config in found] == [
        "runs/ffhq/figure7/t0.8",
        "runs/ffhq/figure7/t1.0-1.0-0.9",
    ]
    config = Parse(test).config.test
    assert list(config.data.init_args.samples.values()) == [
        config.trainer.default_root_dir for config in found
    ]
    assert list(config.model.init_args.fractions) == [1.0, 0.1]


def test_figure_7_ends_with_the_job_that_fails(experiment, in_clone, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 3))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, experiment("figure7"), "demo")
    assert ended.value.code == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo", "--temperatures", "0"], "wanted a number above 0, or 2"),
        (["demo", "--temperatures", "1,1,1"], "wanted a number above 0, or 2"),
        (["demo", "--temperatures", "hot"], "wanted a number above 0, or 2"),
        (["demo", "--temperatures", "1", "1.0,1.0"], "wanted different ones"),
        (["dmo"], "no such config"),
    ],
)
def test_figure_7_refuses_before_any_job(experiment, jobs, in_clone, monkeypatch, args, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, experiment("figure7"), *args)
    assert jobs == []


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def drawn_lines(axes):
    return {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in axes.get_lines()}


def test_figure_7_has_both_curves_and_the_real_images(experiment, axes):
    shuffled = [sets()[3], sets()[0], sets()[2], sets()[1], *sets()[4:]]
    experiment("figure7").draw(axes, fake_evaluation(sets=shuffled), "is", "fid", filled=True, prefix="FID, ")
    assert drawn_lines(axes) == {
        "FID, temperatures": [(3.1, 24.0), (3.6, 18.0), (4.0, 14.5), (3.9, 15.5)],
        "FID, best fractions of t1.0": [(3.9, 15.5), (4.6, 12.5), (5.3, 12.0), (6.0, 13.5)],
        "FID, held-out originals": [(6.8, 2.1)],
        "FID, their reconstructions": [(5.6, 9.8)],
    }
    labels = {text.get_text(): text.xy for text in axes.texts}
    assert labels["0.9"] == (4.0, 14.5)
    assert labels["25%"] == (5.3, 12.0)
    assert "100%" not in labels  # it is the point of temperature 1


def test_other_samples_lie_on_no_curve(experiment, axes):
    sets = [
        sample_set("samples", 1.0, 9.0, None, 3.0, 0.5, 0.6),
        sample_set("samples", 0.5, 8.0, None, 4.0, 0.6, 0.5),
        sample_set("biggan", 1.0, 7.0, None, 5.0, 0.9, 0.3),
    ]
    experiment("figure7").draw(
        axes, fake_evaluation(sets=sets), "recall", "precision", filled=True, prefix=""
    )
    lines = list(drawn_lines(axes).values())
    assert lines == [[(0.6, 0.5), (0.5, 0.6)], [(0.3, 0.9)]]
    assert [text.get_text() for text in axes.texts] == ["100%", "50%", "biggan"]


def test_only_plot_draws_any_evaluation_and_runs_nothing(experiment, jobs, tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "demo" / "eval")
    run(monkeypatch, experiment("figure7"), "--only-plot", folder)
    assert jobs == []
    picture = torch.frombuffer(
        bytearray(Image.open(tmp_path / "demo" / "figure7.png").tobytes()), dtype=torch.uint8
    )
    assert (picture < 128).float().mean() > 0.005  # it is not blank
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["set", "images", "FID", "(classifier)"]
    assert table[6].split() == ["t1.0@0.25", "250", "12", "8.1", "5.3", "0.7", "0.38"]


def test_a_evaluation_without_such_figures_is_refused(experiment, tmp_path, monkeypatch):
    folder = write(tmp_path / "eval", sets=sets()[-1:])
    with pytest.raises(SystemExit, match="neither FID and IS nor precision and recall"):
        run(monkeypatch, experiment("figure7"), "--only-plot", folder)
    assert not (tmp_path / "figure7.png").exists()
