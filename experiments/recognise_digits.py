"""How many of the demo's samples an independent classifier recognises as the digit asked for.

    python experiments/recognise_digits.py runs/demo/samples
    python experiments/recognise_digits.py runs/demo/samples --fractions 1 0.5 0.25 0.1

With fractions: how many of the best of each class, by the scores of the sample job's rejection classifier.

The independent classifier is a support vector machine on the principal components of real digits. It shares
no code and no weights with this suite, so it is independent of the rejection classifier. Digits are first
centred on their mass, as MNIST's makers did, because the demo's networks learn and sample shifted digits.
"""

import argparse

import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import from_numpy

from vqvae2.data.sources import ImageSource, open_source
from vqvae2.jobs.scores import read_scores
from vqvae2.sampling.rejection import keep_best
from vqvae2.surroundings import at_home, show_any_name

NUM_TRAIN = 4500  # of the 5,000 digits; the others measure the classifier's accuracy
SIDE = 32


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "samples", type=at_home, help="location of samples with labels, such as runs/demo/samples"
    )
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[1.0], metavar="F", help="best of each class; 1 is all"
    )
    args = parser.parse_args()
    source = open_source(args.samples)
    kept = {fraction: choose(source, fraction) for fraction in args.fractions}
    classifier, accuracy = train_classifier()
    print(f"real held-out digits  {accuracy:.3f}")
    recognised = classifier.predict(centred(pixels(source))) == source.labels
    for fraction, which in kept.items():
        name = "samples" if fraction == 1 else f"best {fraction:g} of each class"
        print(f"{name:<20}  {recognised[which].mean():.3f} of {which.sum()}")


def choose(source: ImageSource, fraction: float) -> np.ndarray:
    """Which samples are the best fraction of their class, bool [N]."""
    if fraction == 1:
        return np.ones(len(source), bool)
    return keep_best(read_scores(source), from_numpy(source.labels), fraction).numpy()


def train_classifier() -> tuple[object, float]:
    """The independent classifier, and its accuracy on held-out digits."""
    source = open_source("demo:digits")
    digits = pixels(source)
    order = np.random.default_rng(0).permutation(len(digits))
    train, held_out = order[:NUM_TRAIN], order[NUM_TRAIN:]
    shifts = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    views = np.concatenate([centred(digits[train], shift) for shift in shifts])
    classifier = make_pipeline(PCA(50, random_state=0), SVC(C=5))
    classifier.fit(views, np.tile(source.labels[train], len(shifts)))
    return classifier, classifier.score(centred(digits[held_out]), source.labels[held_out])


def pixels(source: ImageSource) -> np.ndarray:
    """All images of a source in [0, 1] in the middle of black `[N, SIDE, SIDE]`."""
    images = np.stack([np.asarray(source.read(i).convert("L")) for i in range(len(source))]) / 255
    margin = (SIDE - images.shape[1]) // 2
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin)))


def centred(images: np.ndarray, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The images with their centre of mass in the middle, to the pixel, then shifted, `[N, SIDE²]`."""
    places = np.arange(SIDE) - (SIDE - 1) / 2
    mass = images.sum((1, 2)).clip(min=1e-9)
    down = np.rint((images.sum(2) @ places) / mass).astype(int)
    right = np.rint((images.sum(1) @ places) / mass).astype(int)
    moved = [
        np.roll(image, (shift[0] - y, shift[1] - x), (0, 1))
        for image, y, x in zip(images, down, right, strict=True)
    ]
    return np.stack(moved).reshape(len(images), -1)


if __name__ == "__main__":
    main()
