"""What an evaluation leaves to look at: every cell of its pictures, and all that goes to W&B."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from tests.checkpoints import save_autoencoder
from tests.experiments.fake_evaluation import RUN, fake_evaluation, sample_set
from vqvae2.evaluation.pictures import EvaluationPictures, Point, curves, log_evaluation
from vqvae2.pixels import to_uint8
from vqvae2.runs.loggers import WandbLogger, WandbSettings

SIDE = 16
GREY = 128


class Data:
    """Stands in for an `EvaluationDataModule`: every image differs, `broken` ones cannot be read."""

    def __init__(self, labels, broken=()):
        self.candidates = {name: f"runs/x/{name}" for name in labels if name not in ("real", "held_out")}
        self.test_names = tuple(labels)
        self.labels = labels
        self.broken = set(broken)

    def picture(self, name, index):
        if (name, index) in self.broken:
            raise ValueError(f"Image {index} of '{name}' cannot be read.")
        generator = torch.Generator().manual_seed(1000 * self.test_names.index(name) + index)
        return torch.randint(256, (1, SIDE, SIDE), dtype=torch.uint8, generator=generator)

    def labels_of(self, name):
        return torch.tensor(self.labels[name])

    def num_test_samples(self, name):
        return len(self.labels[name])


def draw(tmp_path, data, *, evaluation=None, network=None, rank=0, **options):
    """Name and pixels of each picture that the end of a test leaves."""
    trainer = SimpleNamespace(
        datamodule=data, default_root_dir=str(tmp_path), global_step=0, is_global_zero=rank == 0, loggers=[]
    )
    module = SimpleNamespace(
        evaluation=evaluation or fake_evaluation(), autoencoder_network=network, device=torch.device("cpu")
    )
    EvaluationPictures(**options).on_test_end(trainer, module)
    return {
        path.name.removesuffix("-0000000.png"): pil_to_tensor(Image.open(path))
        for path in (tmp_path / "images").glob("*.png")
    }


def cells(picture, rows, columns):
    """The images of a grid with a border of one pixel, [rows][columns]."""
    side = SIDE + 1
    assert picture.shape[1:] == (rows * side + 1, columns * side + 1)
    return [
        [picture[:1, r * side + 1 : (r + 1) * side, c * side + 1 : (c + 1) * side] for c in range(columns)]
        for r in range(rows)
    ]


def assert_cells(picture, expected):
    """`expected` is [rows][columns] of images, None for an empty cell."""
    for found, wanted in zip(cells(picture, len(expected), len(expected[0])), expected, strict=True):
        for cell, image in zip(found, wanted, strict=True):
            assert torch.equal(cell, torch.full_like(cell, GREY) if image is None else image)


def test_samples_have_a_class_a_column_and_short_classes_end_grey(tmp_path):
    labels = [2, 0, 0, 1, 2, 0, 2, 0]
    data = Data({"samples": labels, "real": [0]}, broken=[("samples", 1), ("samples", 3)])
    pictures = draw(tmp_path, data, rows=2)
    show = [[2, None, 0], [5, None, 4]]  # class 1 has one image only, which is broken
    assert list(pictures) == ["samples"]
    assert_cells(
        pictures["samples"],
        [[None if i is None else data.picture("samples", i) for i in row] for row in show],
    )


def test_many_classes_are_thinned_out_evenly(tmp_path):
    data = Data({"samples": list(range(25)), "real": [0]})
    pictures = draw(tmp_path, data, columns=10)
    assert_cells(
        pictures["samples"], [[data.picture("samples", i) for i in (0, 2, 5, 7, 10, 12, 15, 17, 20, 22)]]
    )


def test_unlabelled_samples_are_the_first_in_rows_and_candidates_have_their_own(tmp_path):
    data = Data({"a": [-1] * 7, "b": [0, 0], "real": [0]}, broken=[("a", 1)])
    pictures = draw(tmp_path, data, columns=2, rows=2)
    assert sorted(pictures) == ["samples-a", "samples-b"]
    assert_cells(pictures["samples-a"], [[data.picture("a", i) for i in row] for row in ((0, 2), (3, 4))])
    assert_cells(pictures["samples-b"], [[data.picture("b", 0)], [data.picture("b", 1)]])


def test_reconstructions_are_of_held_out_images_from_all_over(tmp_path):
    _, network = save_autoencoder(tmp_path / "a.ckpt")
    data = Data({"real": [0], "held_out": [0] * 12}, broken=[("held_out", 3)])
    picture = draw(tmp_path, data, network=network, rows=4)["reconstructions"]
    found = cells(picture, 3, 3)
    with torch.no_grad():
        for row, index in zip(found, (0, 6, 9), strict=True):
            original = data.picture("held_out", index)
            codes = network.encode(original[None].float() / 127.5 - 1)
            expected = [to_uint8(network.decode(codes, 1))[0], to_uint8(network.decode(codes))[0]]
            for cell, image in zip(row[:2], expected, strict=True):
                assert (cell.int() - image.int()).abs().max() <= 1  # rounding differs with the batch
            assert torch.equal(row[2], original)


def test_neighbours_stand_beside_their_sample_behind_a_gap(tmp_path):
    neighbours = [
        {"set": "t0.9@0.5", "index": 3, "features": near(4, 1), "pixels": near(0, 2)},
        {"set": "t1.0", "index": 1, "features": near(5, 5), "pixels": near(3, 1)},
        {"set": "t1.0", "index": 0, "features": near(1, 2), "pixels": near(1, 2)},
    ]
    broken = [("t1.0", 0), ("real", 3)]
    data = Data({"t0.9": [0] * 4, "t1.0": [0] * 4, "real": [0] * 6}, broken)
    pictures = draw(tmp_path, data, evaluation=fake_evaluation(neighbours=neighbours))
    expected = {"features": [[4, 1], [5, 5]], "pixels": [[0, 2], [1, None]]}
    for measure, shown in expected.items():
        picture = pictures[f"neighbours-{measure}"]
        side = SIDE + 2
        gap = picture[:, :, side : -(2 * (SIDE + 1) + 1)]
        assert gap.shape[2] == SIDE // 4
        assert (gap == 255).all()
        queries, others = picture[:, :, :side], picture[:, :, side + gap.shape[2] :]
        assert_cells(queries, [[data.picture("t0.9", 3)], [data.picture("t1.0", 1)]])
        assert_cells(others, [[None if i is None else data.picture("real", i) for i in row] for row in shown])


def near(*indices):
    return [{"index": index, "key": str(index), "distance": 1.0} for index in indices]


def test_other_ranks_draw_nothing(tmp_path):
    data = Data({"samples": [0], "real": [0]})
    data.picture = lambda *_: pytest.fail("read an image")
    assert draw(tmp_path, data, rank=1) == {}


@pytest.mark.parametrize("size", [{"columns": 0}, {"rows": 0}])
def test_a_picture_without_cells_is_refused(size):
    with pytest.raises(ValueError, match="wanted at least one image"):
        EvaluationPictures(**size)


def test_curves_join_the_candidates_and_each_ones_fractions():
    found = curves(fake_evaluation(), "recall", "precision")
    assert list(found) == [None, "t1.0"]
    assert found[None] == [
        Point("t0.7", 0.30, 0.71),
        Point("t0.8", 0.42, 0.66),
        Point("t0.9", 0.50, 0.61),
        Point("t1.0", 0.56, 0.55),
    ]
    assert found["t1.0"][1:] == [
        Point("0.5", 0.47, 0.64),
        Point("0.25", 0.38, 0.70),
        Point("0.1", 0.27, 0.76),
    ]


def test_a_set_without_one_of_the_figures_lies_on_no_curve():
    sets = [sample_set("samples", 1.0, 9.0, None, 3.0, 0.5, 0.5), sample_set("samples", 0.5, *[None] * 5)]
    assert curves(fake_evaluation(sets=sets), "is", "fid") == {}
    assert curves(fake_evaluation(sets=sets), "is", "kid") == {}


class Spy:
    def __init__(self):
        self.logged = []
        self.summary = {}

    def log(self, values):
        self.logged.append(values)


def test_wandb_gets_tables_curves_and_a_summary():
    spy = Spy()
    log_evaluation(SimpleNamespace(experiment=spy), fake_evaluation(), step=7)
    [logged] = spy.logged
    assert logged.pop("trainer/global_step") == 7
    sets = logged.pop("evaluation/sets")
    names = [f"{name} (classifier)" for name in ("FID", "FID*", "IS", "precision", "recall")]
    assert sets.columns == ["set", "images", *names]
    rows = {row[0]: row[1:] for row in sets.data}
    assert rows["t1.0@0.25"] == [250, 12.0, 8.1, 5.3, 0.70, 0.38]
    assert rows["held_out"] == [500, 2.1, None, 6.8, 0.74, 0.73]
    run = logged.pop("evaluation/run")
    assert run.data == [[fake_evaluation()["legend"][key]["name"], value] for key, value in RUN.items()]
    lines = logged.pop("evaluation/fid-is").table.data
    assert [[x, y] for x, line, y in lines if line == "FID* (classifier) of t1.0"] == [
        [3.9, 9.0],
        [4.6, 7.4],
        [5.3, 8.1],
        [6.0, 10.4],
    ]
    assert len(lines) == 16
    assert {line for _, line, _ in logged.pop("evaluation/precision-recall").table.data} == {
        "precision (classifier) of all candidates",
        "precision (classifier) of t1.0",
    }
    assert logged == {}
    assert spy.summary["test/t1.0@0.25/fid_classifier"] == 12.0
    assert spy.summary["test/nll_top_val"] == RUN["nll_top_val"]
    assert all(np.isscalar(value) for value in spy.summary.values())


def test_a_plain_evaluation_has_no_curves():
    spy = Spy()
    evaluation = fake_evaluation(sets=[sample_set("samples", 1.0, 9.0, 8.0, 3.0, 0.5, 0.5)])
    log_evaluation(SimpleNamespace(experiment=spy), evaluation, step=0)
    assert set(spy.logged[0]) == {"evaluation/sets", "evaluation/run", "trainer/global_step"}


def test_an_offline_run_keeps_pictures_tables_and_curves(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(WandbSettings(mode="offline"), tmp_path)
    data = Data({"samples": [0, 1], "real": [0]})
    trainer = SimpleNamespace(
        datamodule=data, default_root_dir=str(tmp_path), global_step=0, is_global_zero=True, loggers=[logger]
    )
    module = SimpleNamespace(
        evaluation=fake_evaluation(), autoencoder_network=None, device=torch.device("cpu")
    )
    EvaluationPictures().on_test_end(trainer, module)
    logger.experiment.finish()
    [media] = (tmp_path / "wandb").glob("offline-run-*/files/media")
    [sets] = media.glob("table/evaluation/sets_*.table.json")
    found = json.loads(sets.read_text())
    assert found["columns"][:2] == ["set", "images"]
    assert [row[0] for row in found["data"]] == [row["key"] for row in fake_evaluation()["sets"]]
    assert list(media.glob("table/evaluation/fid-is_table_*.table.json"))
    assert list(media.glob("images/samples_*.png"))
