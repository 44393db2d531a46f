"""Class names: which label of one data set is which of another, and how many there may be."""

import logging
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

log = logging.getLogger(__name__)

MOST_CLASSES = 1_000_000  # more than any data set has: beyond, labels are identifiers


def normal(name: str) -> str:
    """The name in Unicode's composed form (NFC): file systems write one accent in two ways."""
    return unicodedata.normalize("NFC", name)


def composed(names: Sequence[str]) -> tuple[str, ...]:
    """The names in Unicode's composed form."""
    return tuple(map(normal, names))


def class_labels(
    location: str, found: Iterable[str], classes: Sequence[str] | None, what: str
) -> dict[str, int]:
    """The label of each class by its name in the composed form, in label order.

    Args:
        found: the names that are there.
        classes: the names that they must be among, in label order; None: those found, sorted.
        what: has these names, for messages, such as "class folders".

    Raises:
        ValueError: two names are one, or a name is not among `classes`.
    """
    spellings: dict[str, str] = {}
    for name in found:
        if spellings.setdefault(normal(name), name) != name:
            raise ValueError(
                f"{location}: {normal(name)} is there twice, as {spellings[normal(name)]!a} and as "
                f"{name!a}. It is one name in two forms of Unicode. Merge the two."
            )
    names = sorted(spellings) if classes is None else composed(classes)
    strangers = sorted(spellings.keys() - set(names))
    if strangers:
        raise ValueError(
            f"{location}: {len(strangers)} of {len(spellings)} {what} ({', '.join(strangers[:3])}) are not "
            f"among the {len(names)} training classes ({', '.join(names[:3])}, …). Use the same names in "
            "both."
        )
    return {name: label for label, name in enumerate(names)}


def numbered_classes(labels: np.ndarray, names: Sequence[str], location: str) -> list[str]:
    """Names for classes that are known by number only: "0", "1", …, up to the largest label.

    Args:
        labels: int64 `[N]`.
        names: of the samples, for messages.

    Raises:
        ValueError: a label is too large or too small for the number of a class; -1 is none.
    """
    if labels.min(initial=-1) < -1:
        i = int(labels.argmin())
        raise ValueError(f"{location}: {names[i]} has the label {labels[i]}, wanted a class index from 0 on.")
    count = int(labels.max(initial=-1)) + 1
    if count > MOST_CLASSES:
        raise ValueError(
            f"{location}: {names[int(labels.argmax())]} has the label {count - 1}, which would mean "
            f"{count:,} classes; wanted at most {MOST_CLASSES:,}. If the labels are identifiers, number the "
            "classes 0, 1, 2, …, or set num_classes to 0 to ignore them."
        )
    return [str(label) for label in range(count)]


def by_number(names: Sequence[str]) -> bool:
    """Whether classes are known by their numbers alone, as those of tars are, or not at all."""
    return all(name == str(label) for label, name in enumerate(names))


def comparable(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether both sides name their classes."""
    return not by_number(one) and not by_number(other)


def labels_among(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The label that each of `names` has among the classes `wanted`; -1 for one that is not there."""
    label_of = {name: label for label, name in enumerate(composed(wanted))}
    return [label_of.get(name, -1) for name in composed(names)]


def labels_of_priors(
    labels: Sequence[int],
    names: Sequence[str],
    classes: Sequence[str],
    *,
    num_classes: int,
    things: str,
    location: str,
) -> list[int]:
    """The priors' label of each thing: of the class of its name, or of its number if one side has only these.

    Args:
        labels: of the things, -1 for none.
        names: of these labels' classes, in label order.
        classes: names of the priors' classes.
        num_classes: of the priors; without classes all labels are -1.
        things: of these labels, for messages, such as "prompts".
        location: where they lie, likewise.

    Raises:
        ValueError: one has no label, or is of a class that the priors do not have.
    """
    if not num_classes:
        return [-1] * len(labels)
    if min(labels) < 0:
        raise ValueError(
            f"Some {things} in {location} have no label, but the priors need one of {num_classes} classes. "
            f"Give labelled {things}: of images in class folders, or in tars with classes."
        )
    if comparable(names, classes):
        found = labels_among(names, classes)
        strange = [names[label] for label in sorted(set(labels)) if found[label] < 0]
        if strange:
            raise ValueError(
                f"{things.capitalize()} in {location} are of the class {some(strange)}, which is not among "
                f"the priors' classes {some(classes)}. Give {things} of these, in class folders of the same "
                "names."
            )
        return [found[label] for label in labels]
    if max(labels) >= num_classes:
        raise ValueError(
            f"{things.capitalize()} in {location} are of the class {max(labels)}: the priors know 0 to "
            f"{num_classes - 1}."
        )
    if not (by_number(names) and by_number(classes)):
        log.warning(
            "%s or the priors know their classes by number only: class 0 there is taken for the priors' "
            "class 0, and so on.",
            location,
        )
    return list(labels)


def some(names: Sequence[str]) -> str:
    """The first names, for messages."""
    return ", ".join(names[:10]) + (f", … ({len(names)})" if len(names) > 10 else "")
