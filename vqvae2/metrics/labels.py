"""The metrics of a set of images: what people call them, whose features they take, which way is better."""

import re
from typing import Literal, NamedTuple

INCEPTION = "inception-v3-compat"
VGG = "vgg16"

Better = Literal["lower", "higher"]


class Metric(NamedTuple):
    """What is known of a metric."""

    label: str
    better: Better | None  # None where neither way is better in itself
    network: str | None = None  # by whose features it is defined; None: any that knows the classes, or none


METRICS = {
    "fid": Metric("FID", "lower", INCEPTION),
    "fid_star": Metric("FID*", "lower", INCEPTION),
    "fid_infinity": Metric("FID∞", "lower", INCEPTION),
    "is": Metric("IS", "higher", INCEPTION),
    "is_std": Metric("IS, deviation over splits", None, INCEPTION),
    "kid": Metric("KID", "lower", INCEPTION),
    "kid_std": Metric("KID, deviation over subsets", None, INCEPTION),
    "precision": Metric("precision", "higher", VGG),
    "recall": Metric("recall", "higher", VGG),
    "density": Metric("density", "higher", VGG),
    "coverage": Metric("coverage", "higher", VGG),
    "class_accuracy": Metric("recognised as their class", "higher"),
    "class_accuracy_by_class": Metric("recognised as their class, class by class", "higher"),
    "critic_log_score": Metric("mean log score by the rejection classifier, nats", "higher"),
}


def metric_key(metric: str, network: str) -> str:
    """The key of a metric's figure: its name, with the network's where that is not the metric's own.

    Args:
        metric: in `METRICS`.
        network: in torch-fidelity's registry, whose features were used. Does not matter for a metric
            that has no network of its own.
    """
    return metric if _is_own(metric, network) else f"{metric}_{re.sub(r'[^0-9a-z]+', '_', network.lower())}"


def metric_label(metric: str, network: str) -> str:
    """What people call it: "FID" by Inception's features, "FID (clip-vit-b-32)" by others."""
    label = METRICS[metric].label
    return label if _is_own(metric, network) else f"{label} ({network})"


def _is_own(metric: str, network: str) -> bool:
    return METRICS[metric].network in (None, network)
