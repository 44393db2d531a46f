"""The page of a run: whole, nothing from outside, nothing unescaped, and what is missing is said."""

import json
import re
import shutil

import pytest

from tests.experiments.fake_run import accuracy, evaluation, make_run, write_json
from tests.experiments.report_page import cell, close


def test_a_picture_without_classes_claims_no_class_a_column(made, tmp_path):
    page, _ = made(make_run(tmp_path / "with"))
    assert "a class a column: zero, one, two" in page.text
    shutil.rmtree(tmp_path / "with/eval/images")  # only the sample job's picture is left
    page, _ = made(tmp_path / "with")
    assert "a class a column" not in page.text
    assert "none picked" in page.text


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
