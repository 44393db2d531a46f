"""The W&B dashboard: it asks for nothing that no run logs, and nothing is sent without a key."""

import json
import re
import sys
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from PIL import Image
from torch.utils.data import DataLoader

from tests.checkpoints import PRIOR
from tests.experiments.fake_evaluation import fake_evaluation
from tests.quiet import quiet_trainer
from tests.training.training_run import autoencoder_module
from vqvae2.data.images import ImageDataModule
from vqvae2.data.latents import LatentBatch, LatentSpec, Level
from vqvae2.evaluation.pictures import NEIGHBOURS, log_evaluation
from vqvae2.runs.health import Health
from vqvae2.runs.previews import ReconstructionGrid, SampleGrid
from vqvae2.runs.throughput import Throughput
from vqvae2.training.classifier import ClassifierModule
from vqvae2.training.hr_vqvae import HRVQVAEModule
from vqvae2.training.pixelsnail import TopPriorModule
from vqvae2.training.schedules import Constant

RESIDUAL = {
    "beta": 0.25,
    "factor": 2,
    "hidden": 4,
    "residual": 2,
    "residual_blocks": 1,
    "branch": 2,
    "depth": 3,
    "code_dim": 2,
    "decay": 0.9,
    "eps": 1e-5,
}


@pytest.fixture
def dashboard(experiment):
    return experiment("dashboard")


class Names(Logger):
    """Remembers what was logged."""

    name, version = "names", ""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.seen |= set(metrics)


class Codes(L.LightningDataModule):
    spec = LatentSpec((Level("top", 4, 4, 7),), 3, "a" * 64)

    def train_dataloader(self):
        codes, labels = torch.randint(7, (4, 4, 4)), torch.randint(3, (4,))
        return DataLoader([LatentBatch((codes,), labels, torch.arange(4))] * 2, batch_size=None)

    val_dataloader = train_dataloader


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The names of all that training runs log, of three levels, of a tree too, and more than five classes."""
    root = tmp_path_factory.mktemp("images")
    for i in range(28):
        (root / f"class{i % 7}").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"class{i % 7}" / f"{i}.png")
    images = ImageDataModule(train=str(root), holdout=0.3, image_size=8, batch_size=8)
    options = {"schedule": Constant(1e-3), "polyak": 0.9}
    narrow = {"widths": [4], "blocks": 1}
    runs = [
        (autoencoder_module(num_levels=3), images),
        (HRVQVAEModule(**options, **RESIDUAL), images),
        (TopPriorModule(**options, output_layers=0, **PRIOR), Codes()),
        (ClassifierModule(**options, **narrow), images),
        (ClassifierModule(**options, **narrow, optimizer="sgd"), images),
    ]
    names = Names()
    for module, data in runs:
        trainer = quiet_trainer(
            max_steps=2,
            val_check_interval=2,
            check_val_every_n_epoch=None,
            log_every_n_steps=1,
            logger=names,
            callbacks=[LearningRateMonitor(), Throughput(), Health()],
        )
        trainer.fit(module, data)
    return names.seen


@pytest.fixture
def sent():
    """What an evaluation sends to W&B beside its figures, and the names of its figures."""
    spy = SimpleNamespace(log=lambda values: spy.values.update(values), values={}, summary={})
    log_evaluation(SimpleNamespace(experiment=spy), fake_evaluation(), step=0)
    return spy


def panels(workspace, kind):
    return [
        panel for section in workspace.sections for panel in section.panels if type(panel).__name__ == kind
    ]


def spec(panel):
    return panel._to_model().model_dump(by_alias=True, exclude_none=True)


def test_every_line_of_training_is_logged_by_a_module(dashboard, logged):
    lines = panels(dashboard.dashboard("p", "e"), "LinePlot")
    names = {name for panel in lines for name in panel.y}
    assert len(names) > 15
    assert names - logged == set()


def test_patterns_find_the_figures_of_evaluations_and_no_others(dashboard, sent):
    patterns = [
        panel.metric_regex
        for panel in panels(dashboard.dashboard("p", "e"), "LinePlot")
        if panel.metric_regex
    ]
    names = [name for name in sent.summary if name.count("/") == 2]
    names += ["test/x/kid", "test/x/density_dinov2", "test/x/coverage", "test/t0.9@0.5/class_accuracy"]
    found = {pattern: [name for name in names if re.search(pattern, name)] for pattern in patterns}
    assert all(found.values())
    assert sorted(name for matches in found.values() for name in matches) == sorted(names)
    [fid] = [matches for pattern, matches in found.items() if "fid" in pattern]
    assert {name.split("/")[2] for name in fid} == {"fid_classifier", "fid_star_classifier"}


def test_tables_curves_and_pictures_are_those_of_the_callbacks(dashboard, sent):
    workspace = dashboard.dashboard("p", "e")
    tables = {panel.table_name for panel in panels(workspace, "WeavePanelSummaryTable")}
    charts = {spec(panel)["config"]["panelDefId"] for panel in panels(workspace, "CustomChart")}
    curves = {name: value for name, value in sent.values.items() if name != "trainer/global_step"}
    assert tables | set(dashboard.CURVES) == set(curves)
    assert charts == {"wandb/lineseries/v0"}
    pictures = {key for panel in panels(workspace, "MediaBrowser") for key in panel.media_keys}
    assert pictures == {ReconstructionGrid.name, SampleGrid.name, "samples", *NEIGHBOURS.values()}


def test_a_chart_is_described_as_wandb_itself_describes_it(dashboard, sent):
    """Two libraries of W&B have the same panel: one registers it with the plot, the other pins it here."""
    for key, (title, _, _) in dashboard.CURVES.items():
        theirs = sent.values[key].spec
        theirs.key = key
        config = theirs.config_value["panel_config"]
        ours = spec(dashboard.chart(key, title))["config"]
        assert ours["panelDefId"] == config["panelDefId"]
        assert ours["fieldSettings"] == config["fieldSettings"]
        assert ours["transform"] == config["transform"]
        assert ours["stringSettings"]["title"] == config["stringSettings"]["title"]
        [query], [wanted] = ours["userQuery"]["queryFields"], config["userQuery"]["queryFields"]
        tables = [
            next(field["args"] for field in q["fields"] if field["name"] == "summaryTable")
            for q in (query, wanted)
        ]
        assert [arg["value"] for arg in tables[0]] == [arg["value"] for arg in tables[1]] == [f"{key}_table"]


def run(dashboard, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["dashboard.py", *args])
    dashboard.main()


@pytest.fixture
def saved(dashboard, monkeypatch):
    """The workspaces that are sent."""
    sent = []

    def save(workspace):
        sent.append(workspace)
        workspace._internal_name = "nw-abc-v"
        return SimpleNamespace(url="https://wandb.ai/e/p?nw=abc")

    monkeypatch.setattr(dashboard.ws.Workspace, "save", save)
    return sent


def test_without_a_key_nothing_is_sent_and_the_message_says_how_to_get_one(
    dashboard, saved, monkeypatch, tmp_path
):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(dashboard.wandb, "Api", lambda: pytest.fail("asked W&B"))
    with pytest.raises(SystemExit, match=r"no key.*wandb\.ai/authorize.*WANDB_API_KEY"):
        run(dashboard, monkeypatch, "vqvae2")
    assert saved == []


@pytest.mark.parametrize(("args", "entity"), [([], "me"), (["--entity", "team"], "team")])
def test_with_a_key_it_is_saved_once(dashboard, saved, monkeypatch, capsys, args, entity):
    monkeypatch.setattr(dashboard, "why_offline", lambda: None)
    monkeypatch.setattr(dashboard.wandb, "Api", lambda: SimpleNamespace(default_entity="me"))
    run(dashboard, monkeypatch, "digits", *args)
    [workspace] = saved
    assert (workspace.project, workspace.entity) == ("digits", entity)
    assert "https://wandb.ai/e/p?nw=abc" in capsys.readouterr().out


def test_printed_it_is_the_json_that_would_be_sent(dashboard, saved, monkeypatch, capsys):
    run(dashboard, monkeypatch, "digits", "--print")
    printed = json.loads(capsys.readouterr().out)
    sections = printed["spec"]["section"]["panelBankConfig"]["sections"]
    assert printed["project"] == "digits"
    assert [section["name"] for section in sections] == [
        "autoencoder",
        "priors",
        "classifiers",
        "evaluation: figures",
        "evaluation: tables, curves, pictures",
        "speed, memory, gradient, learning rate",
    ]
    assert all(section["panels"] for section in sections)
    assert saved == []
    view = dashboard.ws.Workspace._from_model(dashboard.ws.internal.View.model_validate(printed))
    assert [len(section.panels) for section in view.sections] == [
        len(section["panels"]) for section in sections
    ]
