"""The page of a run: every figure in its place."""

import re
import shutil

import pytest

from tests.experiments.fake_run import evaluation, legend, make_run, row, write_evaluation, write_json
from tests.experiments.real_run import real_evaluation, real_run
from tests.experiments.report_page import DASH, NAMES, cell, close, values


def test_every_figure_of_every_set_stands_in_its_row_and_column(made, tmp_path):
    page, printed = made(make_run(tmp_path / "fake"))
    quality = page.table("Each set of images")
    assert len(quality) == 4
    checked = 0
    for found in evaluation()["sets"]:
        figures = found["figures"]
        assert cell(quality, NAMES[found["key"]], "images") == f"{found['num_images']:,}"
        for key in figures.keys() - {"is_std_classifier", "class_accuracy_by_class"}:
            name = legend()[key]["name"].partition(" (")[0]
            arrow = {"lower": "\xa0↓", "higher": "\xa0↑"}[legend()[key]["better"]]
            wanted = [figures[key]] + ([figures["is_std_classifier"]] if key == "is_classifier" else [])
            assert close(cell(quality, NAMES[found["key"]], name + arrow), *wanted), key
            checked += 1
    assert checked == 4 * 6 + 3
    for name, figure in (("FID (classifier)", 0.81234), ("NLL of all levels", 20170.4)):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert figure == pytest.approx(values(line)[0], rel=1e-3)


def test_an_evaluation_as_it_was_written_has_every_figure_on_the_page(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(real_run(), run)
    page, printed = made(run)
    content, quality = real_evaluation(), page.table("Each set of images")
    checked = 0
    for found in content["sets"]:
        name = found["key"].replace("_", " ").replace("held out", "held-out images").partition("@")[0]
        name += ", best 50 %" if "@" in found["key"] else ""
        for key, figure in found["figures"].items():
            entry = content["legend"][key]
            if isinstance(figure, list) or entry["metric"].endswith("_std"):
                continue
            arrow = {"lower": "\xa0↓", "higher": "\xa0↑"}[entry["better"]]
            rows = [cells for row, cells in quality.items() if row.replace("\xa0", " ").startswith(name)]
            text = cell(
                {name: rows[-1 if "@" in found["key"] else 0]}, name, entry["name"].partition(" (")[0] + arrow
            )
            assert values(text)[0] == pytest.approx(figure, rel=1e-2, abs=1e-8), (found["key"], key)
            checked += 1
    assert checked == 11 + 9 + 2 * 8
    for note in content["notes"]:
        assert note in page.text
    for fact in (content["commit"] or "not known")[:12], content["device"], content["versions"]["torch"]:
        assert fact in page.text
    for key, figure in content["figures"].items():
        name = re.sub(", (training|held-out) images", "", content["legend"][key]["name"])
        line = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
        column = 0 if key.endswith("_train") else -1
        assert values(line[len(name) :])[column] == pytest.approx(figure, rel=1e-2), key


def test_by_class_and_accuracies_in_percent(made, tmp_path):
    page, _ = made(make_run(tmp_path / "fake"))
    scores, classes = page.table("Accuracy in percent"), page.table("Accuracy of each class")
    assert close(cell(scores, "trained on the samples", "real, top-1"), 81.23)
    assert close(cell(scores, "trained on the samples", "reconstructed, top-1"), 80.12)
    assert close(cell(scores, "trained on real images", "real, top-1"), 96.78)
    assert cell(scores, "trained on the samples", "real, top-5") == DASH  # three classes have no top 5
    assert close(cell(scores, "trained on the samples", "images trained on"), 1234)
    assert close(cell(scores, "paper: VQ-VAE-2", "reconstructed, top-5"), 80.98)
    assert [cell(classes, name, "samples: ") for name in ("zero", "one", "two")] == ["91.00", DASH, "77.25"]
    assert close(cell(classes, "two", "trained on samples, tested on real"), 73.45)


def test_figures_of_the_run_stand_beside_the_papers(made, tmp_path):
    page, _ = made(make_run(tmp_path / "fake"))
    table = page.table("The run's own figures")
    ours = {"MSE": (0.021543, 0.0222346), "NLL top": (None, 2.13728), "NLL of all levels": (None, 20170.4)}
    for name, figures in ours.items():
        for column, figure in zip(("train", "held out"), figures, strict=True):
            text = cell(table, name, column)
            assert text == DASH if figure is None else close(text, figure), (name, column)
    assert close(cell(page.table("Codes and codebooks"), "codebook top, perplexity", "value"), 57.3342)
    assert cell(table, "MSE", "paper, validation") == "0.0050"
    assert cell(table, "NLL top", "paper, train") == "3.40"
    assert cell(table, "NLL of all levels", "paper, validation") == "25,425*"


def test_the_papers_figures_are_those_that_it_prints(experiment):
    paper = experiment("paper")
    assert [(row.train, row.validation) for row in paper.TABLE_1] == [
        (3.40, 3.41),
        (3.45, 3.45),
        (0.0047, 0.0050),
    ]
    assert [(row.top1, row.top5) for row in paper.TABLE_2] == [
        (42.65, 65.92), (54.83, 77.59), (58.74, 80.98), (73.09, 91.47),
    ]  # fmt: skip
    assert paper.validation_bits() == pytest.approx(1024 * 4.91959 + 4096 * 4.97730, rel=1e-5)
    assert paper.validation_bits() / paper.PIXELS == pytest.approx(0.388, abs=5e-4)


def test_only_the_best_of_the_samples_is_marked(made, tmp_path):
    content = evaluation()
    content["sets"][2]["figures"]["class_accuracy"] = 0.8765  # held-out images, as good as the best samples
    page, _ = made(make_run(tmp_path / "fake", content))
    assert page.strong.count("0.8765 (best)") == 1
    best = {float(text.removesuffix(" (best)")) for text in page.strong if text.endswith("(best)")}
    # FID and IS of the best quarter, accuracy of all; held-out images are better, but not in the contest.
    assert {0.6023, 4.652, 0.8765} <= best
    assert not {0.3123, 4.942, 0.8671} & best
    alone = evaluation()
    alone["sets"] = [found for found in alone["sets"] if found["key"] != "samples@0.25"]
    page, _ = made(make_run(tmp_path / "alone", alone))
    assert not [text for text in page.strong if text.endswith("(best)")]


def test_what_was_left_out_says_why(made, tmp_path):
    page, _ = made(make_run(tmp_path / "fake"))
    assert cell(page.tables[0], NAMES["samples@0.25"], "KID") == f"{DASH}no figure1"
    assert page.text.count("250 images are fewer than <a subset> of 1000") == 2  # footnote and list
    assert "fid infinity of samples: 1000 images, wanted 50000" in page.text
    read = page.table("Images and codes")
    assert read["real"] == {"read": "4,535", "unreadable": "17"}


def test_sizes_of_images_are_height_and_width(made, tmp_path):
    """Evaluations hold one number where both are the same."""
    for size, wanted in ((32, "32 x 32, grey"), ([192, 320], "192 x 320, grey")):
        content = evaluation()
        content["inputs"]["image_size"] = size
        folder = make_run(tmp_path / f"{size}")
        write_json(folder / "eval/metrics.json", content)
        page, _ = made(folder)
        assert wanted in page.text


def test_evaluations_by_the_same_networks_share_a_table(made, tmp_path):
    run = make_run(tmp_path / "fake")
    other = evaluation()
    other["sets"] = [row("biggan", "samples", 1000, -0.3), *other["sets"][2:]]
    write_evaluation(run / "eval_biggan", other)
    page, _ = made(run, "--eval", "eval", "eval_biggan")
    assert list(map(len, page.tables))[:1] == [5]  # the held-out images and reconstructions once
    assert close(cell(page.tables[0], "biggan", "FID\xa0"), 0.51234)
    assert "0.5123 (best)" in page.strong


def test_evaluations_by_different_networks_do_not_share_a_table(made, tmp_path):
    run = make_run(tmp_path / "fake")
    other = evaluation()
    other["networks"]["distance"]["fingerprint"] = "another"
    write_evaluation(tmp_path / "elsewhere", other)
    page, _ = made(run, "--eval", "eval", str(tmp_path / "elsewhere"))
    assert list(map(len, page.tables))[:2] == [4, 4]
    assert "compare within one only" in page.text


def test_a_prior_over_paths_has_a_curve_of_its_own(experiment, tmp_path):
    for prior in ("top", "path"):
        (tmp_path / prior).mkdir()
        (tmp_path / prior / "metrics.csv").write_text("step,train/nll_nats,val/nll_nats\n1,3,4\n2,2,3\n")
    chart = experiment("report_parts").prior_curves(tmp_path)
    assert all(f"{prior}, {part}" in chart for prior in ("top", "path") for part in ("train", "held out"))
