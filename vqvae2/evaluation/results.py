"""The figures of an evaluation under names that cannot be confused, and the printed table of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vqvae2.evaluation.feature_networks import DISTANCE, MANIFOLD, FeatureNetworks
from vqvae2.evaluation.fractions import Rejection
from vqvae2.evaluation.sample_sets import ImageSet
from vqvae2.jobs.scores import LOG_SCORE
from vqvae2.metrics.accuracy import Tally
from vqvae2.metrics.labels import METRICS, metric_key, metric_label
from vqvae2.metrics.quality import Reference, quality
from vqvae2.metrics.sizes import Wanted, fitted
from vqvae2.nn.weights import fingerprint
from vqvae2.training.classifier import ClassifierFeatures

FORMAT = "vqvae2-verdict-2"  # the name since the first evaluations; kept so that they can still be read
_SPLITS = {"train": "training images", "val": "held-out images"}
_RUN_FIGURES = {  # key: name, and which way is better; {0} and {1} are the groups
    r"mse_(train|val)": ("MSE of reconstructions, {0}, pixels in [-1, 1]", "lower"),
    r"psnr_db_(train|val)": ("PSNR of reconstructions, {0}, dB", "higher"),
    r"nll_(\w+)_(train|val)": ("NLL {0}, {1}, nats a code", "lower"),
    r"bits_stored": ("codes without a prior, bits an image", "lower"),
    r"compression_stored": ("compression by the codes alone, of bits", "higher"),
    r"compression_values": ("compression by the codes alone, of numbers of values", "higher"),
    r"bits_(train|val)": ("NLL of all levels, {0}, bits an image", "lower"),
    r"bits_(\w+)_(train|val)": ("NLL {0}, {1}, bits an image", "lower"),
    r"bpp_(train|val)": ("NLL of all levels, {0}, bits a pixel", "lower"),
    r"compression_(train|val)": ("compression by codes and priors, {0}, of bits", "higher"),
    r"usage_(\w+)": ("codebook {0}, fraction in use", "higher"),
    r"perplexity_(\w+)": ("codebook {0}, perplexity", "higher"),
}


def run_legend(key: str) -> dict[str, Any]:
    """What a figure of the run, not of a set of images, is called."""
    for pattern, (name, better) in _RUN_FIGURES.items():
        if found := re.fullmatch(pattern, key):
            groups = [_SPLITS.get(group, group) for group in found.groups()]
            return {"name": name.format(*groups), "metric": key, "better": better}
    raise KeyError(key)


def fit_sizes(wanted: Wanted, sets: Sequence[ImageSet], num_real: int) -> tuple[Wanted, list[str]]:
    """The wanted figures with sizes that fit the images that could be read, and notes for the user.

    For samples in fractions the sizes fit the largest; smaller fractions lack some figures.

    Args:
        wanted: may say "auto".
        sets: all that are evaluated.
        num_real: real images whose features are kept.
    """
    largest: dict[str, int] = {}
    for found in sets:
        if found.part is not None:
            candidate = found.part.candidate
            largest[candidate] = max(largest.get(candidate, 0), len(found.labels))
    others = [len(found.labels) for found in sets if found.part is None]
    return fitted(wanted, samples=min(largest.values()), sets=others, real=num_real)


class SetFigures:
    """Computes the figures of sets and remembers what they are called.

    Args:
        feature_networks: whose features are compared.
        wanted: which figures.
        num_classes: of the images; 0 when unlabelled.
        rejection: which has chosen the samples.
    """

    def __init__(
        self, feature_networks: FeatureNetworks, wanted: Wanted, *, num_classes: int, rejection: Rejection
    ) -> None:
        self.feature_networks = feature_networks
        self.wanted = wanted
        self.rejection = rejection
        classifier = feature_networks.distance.extractor
        self.num_classes = num_classes if isinstance(classifier, ClassifierFeatures) else 0
        scorers = rejection.fingerprints.values()
        self.by_scorer = self.num_classes > 0 and fingerprint(classifier.network) in scorers
        self.legend: dict[str, dict[str, Any]] = {}
        self.left_out: list[dict[str, str]] = []

    def compute(self, images: ImageSet, reference: Reference) -> dict[str, Any]:
        """The figures of a set by their keys; every rank must call this."""
        record = images.records[DISTANCE]
        manifold = images.records.get(MANIFOLD, record) if self.wanted.manifold else None
        found: dict[str, Any] = quality(record, manifold, reference, self.wanted)
        if self.num_classes and record.logits is not None and (images.labels >= 0).all():
            tally = Tally(self.num_classes, record.logits.device)
            tally.update(record.logits, images.labels.to(record.logits.device))
            accuracy = tally.accuracy()
            found["class_accuracy"], found["class_accuracy_by_class"] = accuracy.top1, accuracy.by_class
        if images.part is not None and images.part.log_score is not None:
            found[LOG_SCORE] = images.part.log_score
        self._note_left_out(images, found)
        return {self._key(metric): value for metric, value in found.items()}

    def _key(self, metric: str) -> str:
        """A figure of another network than the metric's own never has the plain name."""
        of_manifold = metric in ("precision", "recall", "density", "coverage")
        network = self.feature_networks.manifold if of_manifold else self.feature_networks.distance
        key, name = metric_key(metric, network.name), metric_label(metric, network.name)
        if metric.startswith("class_accuracy") and self.by_scorer:
            name += ", by the rejection classifier itself"
        self.legend[key] = {"name": name, "metric": metric, "better": METRICS[metric].better}
        return key

    def _note_left_out(self, images: ImageSet, found: Mapping[str, Any]) -> None:
        count = images.records[DISTANCE].count
        for metric, least in self.wanted.least().items():
            if metric in found:
                continue
            reason = f"it needs {least} images"
            if count >= least:  # only the Inception score
                reason = f"{self.feature_networks.distance.name} has no classes"
            self.left_out.append({"set": images.key, "metric": metric, "reason": reason})
        part = images.part
        if part is not None and self.rejection.fractions_of(part.candidate) != self.rejection.fractions:
            reason = "samples without labels cannot be ranked within a class"
            self.left_out.append({"set": images.key, "metric": "fractions", "reason": reason})


def single_figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """All figures of an evaluation but those class by class, under the names that loggers have for them."""
    figures = {f"test/{key}": value for key, value in evaluation["figures"].items()}
    for row in evaluation["sets"]:
        figures |= {f"test/{row['key']}/{key}": value for key, value in row["figures"].items()}
    return {key: value for key, value in figures.items() if not isinstance(value, list)}


def print_table(evaluation: Mapping[str, Any]) -> None:
    """A line a figure: those of the sets with a column a set, then those of the run."""
    names = {key: entry["name"] for key, entry in evaluation["legend"].items()}
    width = max(map(len, names.values()), default=0)
    print()  # ends the progress bar's line
    for note in evaluation["notes"]:
        print(f"Note: {note}")
    if sets := evaluation["sets"]:
        columns = [max(len(found["key"]), 9) for found in sets]
        _print_row("", [found["key"] for found in sets], width, columns)
        _print_row("images", [str(found["num_images"]) for found in sets], width, columns)
        for key in dict.fromkeys(key for found in sets for key in found["figures"]):
            values = [found["figures"].get(key) for found in sets]
            if not any(isinstance(value, list) for value in values):
                _print_row(names[key], [_short(value) for value in values], width, columns)
    for key, value in evaluation["figures"].items():
        _print_row(names[key], [_short(value)], width, [9])


def _print_row(name: str, values: Sequence[str], width: int, columns: Sequence[int]) -> None:
    cells = (f"{value:<{column}}" for value, column in zip(values, columns, strict=True))
    print(f"{name:<{width}}  {'  '.join(cells)}".rstrip())


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
