"""How many of the demo's samples an outsider recognises as the digit asked for.

    python experiments/recognise_digits.py runs/demo/samples

The outsider is a support vector machine on the raw pixels of real digits; it shares nothing with this suite.
"""

import argparse

import numpy as np
from sklearn.svm import SVC

from vqvae2.data.sources import open_source

NUM_TRAIN = 4500  # of the 5,000 digits; the others show how good the judge is
SIDE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", help="location of samples with labels, such as runs/demo/samples")
    samples, asked = pixels(parser.parse_args().samples)
    digits, labels = pixels("demo:digits")
    order = np.random.default_rng(0).permutation(len(digits))
    train, held_out = order[:NUM_TRAIN], order[NUM_TRAIN:]
    shifted = [np.roll(digits[train], shift, (1, 2)) for shift in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    judge = SVC(C=5, gamma=0.02).fit(flat(np.concatenate(shifted)), np.tile(labels[train], len(shifted)))
    print(f"real held-out digits  {judge.score(flat(digits[held_out]), labels[held_out]):.3f}")
    print(f"samples               {judge.score(flat(samples), asked):.3f}")


def pixels(location: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a location in [0, 1], centred on black `[N, SIDE, SIDE]`, and their labels."""
    source = open_source(location)
    images = np.stack([np.asarray(source.read(i).convert("L")) for i in range(len(source))]) / 255
    margin = (SIDE - images.shape[1]) // 2
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin))), source.labels


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


if __name__ == "__main__":
    main()
