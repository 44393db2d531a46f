"""A verdict as `lightning test` writes it, with made-up figures: what pictures and tables are tested on."""

import copy

_SHAPES = {"fid": "lower", "fid_star": "lower", "is": "higher", "precision": "higher", "recall": "higher"}
_NAMES = {"fid": "FID", "fid_star": "FID*", "is": "IS", "precision": "precision", "recall": "recall"}


def figures(fid, fid_star, inception_score, precision, recall, network="classifier"):
    values = (fid, fid_star, inception_score, precision, recall)
    return {
        f"{metric}_{network}": value
        for metric, value in zip(_NAMES, values, strict=True)
        if value is not None
    }


def sample_set(candidate, fraction, *values):
    key = candidate if fraction == 1 else f"{candidate}@{fraction:g}"
    place = f"runs/x/figure7/{candidate}"
    return {
        "key": key,
        "kind": "samples",
        "candidate": candidate,
        "fraction": fraction,
        "num_images": round(1000 * fraction),
        "location": place,
        "figures": figures(*values) | {"class_accuracy_by_class": [0.5, None]},
    }


SETS = [
    sample_set("t0.7", 1.0, 24.0, 15.0, 3.1, 0.71, 0.30),
    sample_set("t0.8", 1.0, 18.0, 10.5, 3.6, 0.66, 0.42),
    sample_set("t0.9", 1.0, 14.5, 8.0, 4.0, 0.61, 0.50),
    sample_set("t1.0", 1.0, 15.5, 9.0, 3.9, 0.55, 0.56),
    sample_set("t1.0", 0.5, 12.5, 7.4, 4.6, 0.64, 0.47),
    sample_set("t1.0", 0.25, 12.0, 8.1, 5.3, 0.70, 0.38),
    sample_set("t1.0", 0.1, 13.5, 10.4, 6.0, 0.76, 0.27),
    {
        "key": "held_out",
        "kind": "held_out",
        "num_images": 500,
        "figures": figures(2.1, None, 6.8, 0.74, 0.73),
    },
    {
        "key": "reconstructions",
        "kind": "reconstructions",
        "num_images": 500,
        "figures": figures(9.8, 1.4, 5.6, 0.62, 0.66),
    },
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


def fake_verdict(**changes):
    """A verdict of four temperatures, one of them also in its critic's best fractions."""
    legend = {
        f"{metric}_classifier": {"name": f"{name} (classifier)", "metric": metric, "better": _SHAPES[metric]}
        for metric, name in _NAMES.items()
    }
    legend |= {key: {"name": f"the run's {key}", "metric": key, "better": "lower"} for key in RUN}
    legend["class_accuracy_by_class"] = {
        "name": "by class",
        "metric": "class_accuracy_by_class",
        "better": "higher",
    }
    verdict = {
        "format": "vqvae2-verdict-2",
        "sets": SETS,
        "figures": RUN,
        "legend": legend,
        "neighbours": [],
    }
    return copy.deepcopy(verdict | changes)
