"""An evaluation as the job wrote it, but for made-up samples with made-up figures."""

from tests.experiments.real_run import like, real_evaluation

_NAMES = ("fid", "fid_star", "is", "precision", "recall")


def figures(*values, network="classifier"):
    """FID, FID*, IS, precision and recall; None leaves one out."""
    return {
        f"{metric}_{network}": value
        for metric, value in zip(_NAMES, values, strict=True)
        if value is not None
    }


def _row(kind, **changes):
    return like(next(row for row in real_evaluation()["sets"] if row["kind"] == kind), **changes)


def sample_set(candidate, fraction, *values):
    return _row(
        "samples",
        key=candidate if fraction == 1 else f"{candidate}@{fraction:g}",
        candidate=candidate,
        fraction=fraction,
        num_images=round(1000 * fraction),
        location=f"runs/x/figure7/{candidate}",
        figures=figures(*values) | {"class_accuracy_by_class": [0.5, None]},
    )


def sets():
    """Four temperatures, one of them also in its best fractions, and what they are beside."""
    held_out, rebuilt = figures(2.1, None, 6.8, 0.74, 0.73), figures(9.8, 1.4, 5.6, 0.62, 0.66)
    return [
        sample_set("t0.7", 1.0, 24.0, 15.0, 3.1, 0.71, 0.30),
        sample_set("t0.8", 1.0, 18.0, 10.5, 3.6, 0.66, 0.42),
        sample_set("t0.9", 1.0, 14.5, 8.0, 4.0, 0.61, 0.50),
        sample_set("t1.0", 1.0, 15.5, 9.0, 3.9, 0.55, 0.56),
        sample_set("t1.0", 0.5, 12.5, 7.4, 4.6, 0.64, 0.47),
        sample_set("t1.0", 0.25, 12.0, 8.1, 5.3, 0.70, 0.38),
        sample_set("t1.0", 0.1, 13.5, 10.4, 6.0, 0.76, 0.27),
        _row("held_out", key="held_out", num_images=500, figures=held_out),
        _row("reconstructions", key="reconstructions", num_images=500, figures=rebuilt),
    ]


RUN = {
    "mse_train": 0.0211,
    "mse_val": 0.0222,
    "nll_top_train": 2.0402,
    "nll_top_val": 2.1373,
    "nll_bottom_train": 1.6158,
    "nll_bottom_val": 1.6502,
    "usage_top": 1,
}


def fake_evaluation(**changes):
    """A whole evaluation; `changes` are of its fields."""
    real = real_evaluation()
    rows = sets()
    shown = dict.fromkeys(key for row in rows for key in row["figures"]) | RUN
    legend = {key: real["legend"][key] for key in shown}  # every key is one that the job writes
    return like(real, **{"sets": rows, "figures": RUN, "legend": legend, "neighbours": [], **changes})
