"""The report of a run: every figure in its place, nothing from outside, nothing unescaped."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.experiments.fake_run import (
    accuracy,
    evaluation,
    legend,
    make_run,
    row,
    write_evaluation,
    write_json,
)
from tests.experiments.real_run import real_evaluation, real_run

DASH = "\N{EN DASH}"
VOID = {"img", "meta", "wbr"}


@pytest.fixture
def report(experiment):
    return experiment("report")


@pytest.fixture
def made(report, monkeypatch, capsys):
    """Makes the report of a run, as the command line does: the page read, and what was printed."""

    def make(run: Path, *arguments: str):
        monkeypatch.setattr(sys, "argv", ["report.py", str(run), *arguments])
        capsys.readouterr()
        report.main()
        return Page((run / "report.html").read_text(encoding="utf-8")), capsys.readouterr().out

    return make


class Page(HTMLParser):
    """A page's text, tables, ids and references; fails on tags that are not balanced."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.text = source, ""
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tables: list[dict[str, dict[str, str]]] = []  # rows of cells by the names of both
        self.captions: list[str] = []
        self.strong: list[str] = []
        self._cells: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [found[name] for name in ("src", "href", "srcset", "data") if name in found]
        if tag == "table":
            self._cells = []
            self.captions.append("")
        elif tag == "tr":
            self._cells.append([])
        elif tag in ("td", "th"):
            self._cells[-1].append("")
        elif tag == "strong":
            self.strong.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            header, *rows = self._cells
            assert len({cells[0] for cells in rows}) == len(rows)  # each has a name of its own
            self.tables.append({cells[0]: dict(zip(header[1:], cells[1:], strict=True)) for cells in rows})

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.captions[-1] += data
        if "strong" in self.open:
            self.strong[-1] += data
        if {"td", "th"} & set(self.open):
            self._cells[-1][-1] += data

    def table(self, caption: str) -> dict[str, dict[str, str]]:
        """The only one whose caption begins so."""
        found = [
            table for name, table in zip(self.captions, self.tables, strict=True) if name.startswith(caption)
        ]
        assert len(found) == 1
        return found[0]


def cell(table, row_name: str, column: str) -> str:
    """By how the names begin, as locations and arrows follow them."""
    rows = [cells for name, cells in table.items() if name.replace("\xa0", " ").startswith(row_name)]
    found = [text for name, text in rows[0].items() if name.startswith(column)]
    assert len(found) == 1, (row_name, column)
    return found[0]


def values(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"-?[\d,]*\d\.?\d*(?:e[-+]\d+)?", text)]


def close(text: str, *wanted: float) -> bool:
    """A cell says these figures, to the digits that it shows: four, or at least three of small ones."""
    return values(text) == pytest.approx(list(wanted), rel=1e-2 if min(map(abs, wanted)) < 0.1 else 1e-3)


NAMES = {
    "samples": "samplesruns/fake",
    "samples@0.25": "samples, best 25 %",
    "held_out": "held-out images",
    "reconstructions": "reconstructions",
}


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


def test_a_evaluation_as_it_was_written_has_every_figure_on_the_page(made, tmp_path):
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


def test_a_picture_without_classes_claims_no_class_a_column(made, tmp_path):
    page, _ = made(make_run(tmp_path / "with"))
    assert "a class a column: zero, one, two" in page.text
    shutil.rmtree(tmp_path / "with/eval/images")  # only the sample job's picture is left
    page, _ = made(tmp_path / "with")
    assert "a class a column" not in page.text
    assert "none picked" in page.text


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


def test_the_papers_figures_are_those_that_it_prints(report):
    paper = sys.modules["paper"]
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


def test_the_page_is_whole_and_needs_nothing_else(made, tmp_path):
    run = make_run(tmp_path / "fake")
    page, printed = made(run)
    assert len(page.ids) == len(set(page.ids)) > 50
    assert {
        found for found in page.references if not found.startswith(("#", "data:image/png;base64,"))
    } == set()
    assert {found[1:] for found in page.references if found.startswith("#")} <= set(page.ids)
    assert {found for found in re.findall(r"url\((.*?)\)", page.source) if found[1:] not in page.ids} == set()
    assert not re.search(r"<script|<link|@import|https?://|javascript:", page.source)
    assert sum(found.startswith("data:") for found in page.references) == 5
    assert page.source.count("<h1") == 1
    assert page.source.count("<svg") == 4
    assert page.source.count("<img") == len(re.findall('<img [^>]*alt="[^"]+"', page.source))
    assert page.source.count("<table") == page.source.count("<caption")
    assert "#000000" not in page.source
    assert "currentColor" in page.source
    assert str(run / "report.html") in printed
    assert not list(run.glob("*.part"))


def test_what_files_say_is_escaped(made, tmp_path):
    page, _ = made(make_run(tmp_path / "fake&<i>"))
    assert "<script>alert(1)</script>" in page.text
    assert "runs/fake/<b>samples</b>" in page.text
    assert "fake&<i>" in page.text
    assert "<script" not in page.source
    assert "<b>" not in page.source
    assert "<i>" not in page.source


def test_missing_stages_are_named_with_their_command(made, tmp_path):
    run = make_run(tmp_path / "fake")
    for stage in ("cas", "classifier", "vqvae", "top", "bottom", "samples", "complete", "eval/images"):
        shutil.rmtree(run / stage)
    page, _ = made(run)
    for command in (
        "lightning predict -c configs/fake_sample.yaml",
        "lightning test -c configs/fake_cas.yaml",
        "lightning test -c configs/fake_classifier.yaml",
        "lightning predict -c configs/fake_complete.yaml",
        "lightning fit -c configs/fake_vqvae.yaml",
    ):
        assert command in page.text
    assert "<img" not in page.source
    assert "Training" not in page.text


def test_a_run_without_samples_has_a_page(made, tmp_path):
    content = evaluation() | {"sets": [], "left_out": [], "neighbours": [], "notes": []}
    page, _ = made(make_run(tmp_path / "fake", content))
    assert "No samples were evaluated" in page.text
    assert "Every figure was computed" in page.text
    assert close(cell(page.tables[0], "NLL top", "held out"), 2.13728)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Evaluate the samples first: make eval-fid CONFIG=fake"),
        (
            {"metrics": {}, "names": {}},
            "has the format None, wanted vqvae2-verdict-2.*make eval-fid CONFIG=fake",
        ),
        ([], "has the format None"),
    ],
)
def test_a_missing_or_older_evaluation_is_refused(made, tmp_path, content, message):
    run = tmp_path / "fake"
    run.mkdir()
    if content is not None:
        write_json(run / "eval/metrics.json", content)
    with pytest.raises(SystemExit, match=message):
        made(run)
    assert not (run / "report.html").exists()


def test_a_cut_file_and_an_older_accuracy_are_refused(made, tmp_path):
    run = make_run(tmp_path / "fake")
    write_json(run / "cas/accuracy.json", accuracy("x", 0.5) | {"format": "older"})
    with pytest.raises(SystemExit, match=r"accuracy\.json has the format older"):
        made(run)
    (run / "eval/metrics.json").write_text(json.dumps(evaluation())[:100])
    with pytest.raises(SystemExit, match=r"metrics\.json cannot be read"):
        made(run)


def test_a_broken_picture_is_said_and_the_others_are_shown(made, tmp_path):
    run = make_run(tmp_path / "fake")
    (run / "eval/images/reconstructions-0000000.png").write_bytes(b"\x89PNG nothing")
    page, _ = made(run)
    assert "reconstructions-0000000.png cannot be read" in page.text
    assert page.source.count("<img") == 4


def test_the_latest_picture_of_each_candidate_is_shown(made, tmp_path):
    run = make_run(tmp_path / "fake")
    images = run / "eval/images"
    for name in ("samples-t0.8-0000000", "samples-t1.0-0000000", "samples-t1.0-0000300"):
        shutil.copy(images / "neighbours-pixels-0000000.png", images / f"{name}.png")
    (images / "samples-0000000.png").unlink()
    page, _ = made(run)
    assert re.findall(r"samples[^<>]*\.png|Grid of samples, [\w.]+", page.source) == [
        "Grid of samples, t0.8",
        "Grid of samples, t1.0",
    ]


def test_a_prior_over_paths_has_a_curve_of_its_own(experiment, tmp_path):
    for prior in ("top", "path"):
        (tmp_path / prior).mkdir()
        (tmp_path / prior / "metrics.csv").write_text("step,train/nll_nats,val/nll_nats\n1,3,4\n2,2,3\n")
    chart = experiment("report_parts").prior_curves(tmp_path)
    assert all(f"{prior}, {part}" in chart for prior in ("top", "path") for part in ("train", "held out"))
