"""Loads the networks of an evaluation, and checks that they and the data fit before any device is taken."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from vqvae2 import distributed
from vqvae2.data.class_names import comparable, composed, some
from vqvae2.data.latents import LatentSpec, check_autoencoder
from vqvae2.evaluation.data_module import EvaluationDataModule
from vqvae2.evaluation.feature_networks import FeatureNetworks
from vqvae2.evaluation.fractions import Rejection
from vqvae2.evaluation.likelihood import CodeFigures
from vqvae2.evaluation.training_images import REAL
from vqvae2.jobs.rejection_classifier import check_classifier, trained_for
from vqvae2.metrics.features import FeatureNetwork, WeightsUnavailable
from vqvae2.metrics.sizes import Wanted
from vqvae2.nn.contracts import PriorNetwork, Tokenizer
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import size_of
from vqvae2.sampling.rejection import num_enough, num_kept
from vqvae2.storage.checkpoint import load_network
from vqvae2.training.classifier import ClassifierFeatures, ClassifierModule
from vqvae2.training.tokenizer import load_tokenizer

_STAND_IN = Path("classifier", "last.ckpt")  # within the folder of a data set's runs


def load_autoencoder_of(path: str, data: EvaluationDataModule) -> Tokenizer:
    """The autoencoder of a checkpoint.

    Raises:
        ValueError: it was trained on other images, or made other codes than the data's.
    """
    network = load_tokenizer(path, data)
    if data.latents is not None:
        check_autoencoder(data.latent_spec, fingerprint(network), codes=str(data.latents), checkpoint=path)
    return network


def load_feature_networks(
    distance: tuple[str, str | None],
    manifold: tuple[str | None, str | None],
    data: EvaluationDataModule,
    folder: str | Path,
) -> tuple[FeatureNetworks, list[str]]:
    """The feature networks, each by name and weights; without a name the second is the first.

    If weights cannot be downloaded, the classifier of the run is used instead.

    Args:
        distance: network for FID, IS and KID.
        manifold: network for precision, recall, density, coverage and nearest images.
        data: whose images they get.
        folder: of the evaluation; the classifier's is beside it.

    Returns:
        The networks, and a sentence for each that was replaced.

    Raises:
        ValueError: they are not available, or are classifiers of other images.
    """
    networks, notes = [], []
    for (name, weights), option in ((distance, "weights"), (manifold, "manifold_weights")):
        if name is not None:
            network = _feature_network(name, weights, option, data, Path(folder).absolute().parent)
            networks.append(network)
            if network.name != name:
                notes.append(
                    f"the weights of {name} are not available here; {network.weights} is used instead."
                )
    return FeatureNetworks(networks[0], networks[-1]), notes


def load_code_figures(priors: Sequence[str], data: EvaluationDataModule) -> dict[str, CodeFigures]:
    """One for the held-out codes and, if there are priors, one for the training codes.

    Raises:
        ValueError: a prior was trained on other codes or classes, or several are of one level.
    """
    spec = data.latent_spec
    networks = {}
    for path in priors:
        loaded = load_network(path, PriorNetwork.kind)
        found = LatentSpec.from_dict(loaded.facts["latents"])
        check_prior(found, spec, prior=path, latents=str(data.latents))
        _check_classes(loaded.facts.get("classes", ()), data.manifest.classes, path, str(data.latents))
        networks[loaded.facts["level"]] = loaded.network
    if len(networks) < len(priors):
        raise ValueError(
            f"Several of the priors {', '.join(priors)} are of one level, wanted one for each level."
        )
    size = {"num_pixels": math.prod(size_of(data.image_size)), "channels": data.channels}
    splits = ("train", "val") if priors else ("val",)
    return {
        f"latents_{split}": CodeFigures(split, spec, networks, **size)
        for split in splits
        if f"latents_{split}" in data.test_names
    }


def check_counts(
    data: EvaluationDataModule, wanted: Wanted, rejection: Rejection, max_features: int | None
) -> None:
    """Refuses an evaluation of fewer images than the figures need.

    A best fraction may have fewer. Figures that need more are left out for it, and the evaluation says so.

    Raises:
        ValueError: says how many are enough.
    """
    least = wanted.least()
    kept = min(data.num_test_samples(REAL), max_features or data.num_test_samples(REAL))
    pairwise = {name: number for name, number in least.items() if name not in ("is", "fid_infinity")}
    _check_enough(pairwise, kept, f"{kept} real images", "Give more, or a larger max_features")
    each = rejection.samples_each
    for name in data.candidates:
        counts = data.labels_of(name).unique(return_counts=True)[1].tolist()
        evaluated = min(sum(counts), each or sum(counts))
        if 1.0 in rejection.fractions_of(name):
            _check_enough(least, evaluated, f"{evaluated} of the samples '{name}' to evaluate", "Draw more")
        fewest = max(least["fid"], least["is"]) if each is None else each
        for fraction in rejection.fractions_of(name):
            kept = sum(num_kept(count, fraction) for count in counts)
            if kept < fewest:
                raise ValueError(
                    f"The fraction {fraction} keeps {kept} of the {sum(counts)} samples '{name}', wanted at "
                    f"least {fewest}. {num_enough(fewest, fraction)} samples are enough. Or leave this "
                    "fraction out."
                )


_OPTIONS = {"is": "splits", "kid": "kid.subset_size", "fid_infinity": "fid_infinity.largest"}


def _check_enough(least: Mapping[str, int], count: int, images: str, cure: str) -> None:
    for metric, number in least.items():
        if count < number:
            option = _OPTIONS.get(metric, "manifold's neighbours")
            smaller = "" if metric == "fid" else f", or set a smaller model.init_args.{option}"
            raise ValueError(f"There are {images}, {metric} needs at least {number}. {cure}{smaller}.")


def _feature_network(
    name: str, weights: str | None, option: str, data: EvaluationDataModule, run: Path
) -> FeatureNetwork:
    missing = None
    try:
        network = FeatureNetwork(name, weights, option=option)
    except WeightsUnavailable as error:
        missing = error
    if not all(distributed.all_gather_objects(missing is None)):  # all ranks use the same network
        weights = str(run / _STAND_IN)
        if not Path(weights).is_file():
            raise ValueError(
                f"{missing or f'Another rank cannot get the weights of {name}.'} The classifier of this run "
                f"could be used instead, but there is none: {weights}."
            )
        network = FeatureNetwork(ClassifierModule.kind, weights)
    if isinstance(network.extractor, ClassifierFeatures):
        _check_classifier(weights, network.extractor, data)
    return network


def check_prior(found: LatentSpec, wanted: LatentSpec, *, prior: str, latents: str) -> None:
    """Refuses a prior that was trained on the codes of another autoencoder, or on other grids.

    Raises:
        ValueError: names both fingerprints.
    """
    if found != wanted:
        raise ValueError(
            f"{prior} was trained on codes of the autoencoder {found.autoencoder[:16]}, {_grids(found)}, but "
            f"{latents} holds codes of the autoencoder {wanted.autoencoder[:16]}, {_grids(wanted)}. Train "
            "the prior on these latents, or name those that it was trained on."
        )


def _check_classes(found: Sequence[str], wanted: Sequence[str], prior: str, latents: str) -> None:
    if comparable(found, wanted) and composed(found) != composed(wanted):
        raise ValueError(
            f"{prior} learned the classes {some(found)}, but {latents} has {some(wanted)}. Train the "
            "prior on these latents, or name those that it was trained on."
        )


def _grids(spec: LatentSpec) -> str:
    levels = (f"{level.name} {level.height}x{level.width} of {level.num_codes}" for level in spec.levels)
    return f"{', '.join(levels)}, {spec.num_classes} classes"


def _check_classifier(path: str, classifier: ClassifierFeatures, data: EvaluationDataModule) -> None:
    """Refuses a classifier that was trained on other images or classes."""
    found = trained_for(classifier.facts)
    wanted = {"image_size": data.image_size, "channels": data.channels, "num_classes": data.num_classes}
    if data.num_classes == 0:  # without labels only the features count
        check_classifier(path, found, {**wanted, "num_classes": found["num_classes"]})
    else:
        check_classifier(path, found, wanted, classifier.facts["classes"], data.classes)
