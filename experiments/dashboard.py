"""Sets up a dashboard for this suite's runs in a Weights & Biases project, as a saved view of its workspace.

    python experiments/dashboard.py vqvae2
    python experiments/dashboard.py vqvae2 --entity TEAM
    python experiments/dashboard.py vqvae2 --print      # as JSON; needs no account

Each call makes a new view; views of earlier calls stay.
"""

import argparse
import json
import sys

import wandb
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports import v2 as wr

from vqvae2.evaluation.pictures import CURVES, NEIGHBOURS, RUN, SETS
from vqvae2.runs.loggers import why_offline

NAME = "VQ-VAE-2"
LEVELS = ("top", "mid", "bottom")
RESIDUAL_LEVELS = ("level1", "level2", "level3")  # of an HR-VQVAE
STEP = "trainer/global_step"
NO_KEY = (
    "W&B has no key, so nothing was sent. Make an account at https://wandb.ai, copy your key from "
    "https://wandb.ai/authorize, and run `wandb login` or set WANDB_API_KEY. Without a key, --print shows it."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", help="the runs' project, as --wandb.project has it")
    parser.add_argument("--entity", help="user or team that owns the project; your default one if not given")
    parser.add_argument("--print", action="store_true", help="print the dashboard as JSON and send nothing")
    options = parser.parse_args()
    if options.print:
        print(as_json(dashboard(options.project, options.entity or "")))
    elif why_offline() is not None:
        sys.exit(f"error: {NO_KEY}")
    else:
        entity = options.entity or wandb.Api().default_entity
        print(f"The dashboard: {dashboard(options.project, entity).save().url}")


def dashboard(project: str, entity: str) -> ws.Workspace:
    """The workspace, not saved."""
    sections = [autoencoder(), priors(), classifiers(), *evaluation(), health()]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def as_json(workspace: ws.Workspace) -> str:
    """What would be sent."""
    return json.dumps(workspace._spec, indent=1)


def autoencoder() -> ws.Section:
    panels = [
        line("MSE, pixels in [-1, 1]", "train/mse", "val/mse", log_y=True),
        line("PSNR, dB", "val/psnr"),
        line("codebook perplexity", *by_level("val/perplexity")),
        line("codebook, fraction in use", *by_level("val/usage")),
        line("codebook perplexity of a training batch", *by_level("train/perplexity")),
        line("commitment", *by_level("val/commitment")),
        line("tree of codes, share ever visited", *(f"val/visited_{level}" for level in RESIDUAL_LEVELS)),
        pictures("reconstructions level by level, the original last", "reconstructions"),
    ]
    return ws.Section(name="autoencoder", panels=panels, is_open=True)


def priors() -> ws.Section:
    """A run has one level, so the runs' names tell the levels apart."""
    panels = [
        line("NLL, held out, nats a code", "val/nll_nats"),
        line("NLL, training, nats a code", "train/nll_nats"),
        line("bits an image of the level, held out", "val/bits_per_image"),
        pictures("samples beside reconstructions", "samples"),
    ]
    return ws.Section(name="priors", panels=panels, is_open=True)


def classifiers() -> ws.Section:
    panels = [
        line("accuracy", "train/accuracy", "val/accuracy"),
        line("accuracy, top-5", "val/accuracy_top5"),
        line("loss", "train/loss", "val/loss"),
    ]
    return ws.Section(name="classifiers", panels=panels)


def evaluation() -> list[ws.Section]:
    """Figures have a name a set of images, `test/SET/FIGURE`, so the panels take patterns of names."""
    figures = [
        over_sets("Fréchet distances (FID, FID*, FID∞)", "fid"),
        over_sets("Inception scores and their deviations (IS)", "is"),
        over_sets("kernel distances and their deviations (KID)", "kid"),
        over_sets("precision", "precision"),
        over_sets("recall", "recall"),
        over_sets("density", "density"),
        over_sets("coverage", "coverage"),
        over_sets("recognised as their class", "class_accuracy"),
    ]
    tables = [wr.WeavePanelSummaryTable(table_name=name) for name in (SETS, RUN)]
    curves = [chart(key, title) for key, (title, _, _) in CURVES.items()]
    seen = ("samples", "reconstructions", *NEIGHBOURS.values())
    return [
        ws.Section(name="evaluation: figures", panels=[*figures], is_open=True),
        ws.Section(
            name="evaluation: tables, curves, pictures", panels=[*tables, *curves, *map(pictures, seen, seen)]
        ),
    ]


def health() -> ws.Section:
    panels = [
        line("images or code grids a second", "speed/samples_per_s"),
        line("share of the time that waits for data", "speed/data_wait", range_y=(0, 1)),
        line("memory, most so far, GB", "memory/peak_gb"),
        line("gradient norm before clipping", "train/gradient_norm", log_y=True),
        line(
            "learning rate", "lr-Adam", "lr-AdamW/pg1", "lr-SGD/pg1"
        ),  # both groups of a classifier have one
    ]
    return ws.Section(name="speed, memory, gradient, learning rate", panels=panels)


def line(title: str, *names: str, **options: object) -> wr.LinePlot:
    return wr.LinePlot(title=title, x=STEP, y=list(names), **options)


def over_sets(title: str, figure: str) -> wr.LinePlot:
    """A figure of each set of images, whatever network it is by."""
    return wr.LinePlot(title=title, x=STEP, metric_regex=f"^test/[^/]+/{figure}(_.*)?$")


def chart(key: str, title: str) -> wr.CustomChart:
    """A plot that `wandb.plot.line_series` has logged under a key."""
    fields = {name: name for name in ("step", "lineKey", "lineVal")}
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": f"{key}_table"}},
        chart_name="wandb/lineseries/v0",
        chart_fields=fields,
        chart_strings={"title": title},
    )


def pictures(title: str, *keys: str) -> wr.MediaBrowser:
    return wr.MediaBrowser(title=title, media_keys=list(keys), num_columns=1)


def by_level(name: str) -> list[str]:
    return [f"{name}_{level}" for level in (*LEVELS, *RESIDUAL_LEVELS)]


if __name__ == "__main__":
    main()
