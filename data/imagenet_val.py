"""Sorts ImageNet's flat folder of validation images into class folders, named as those of the training set.

    python data/imagenet_val.py PATH/val ILSVRC2012_devkit_t12
    python data/imagenet_val.py PATH/val LOC_val_solution.csv

The labels come from the unpacked development kit, or from the table that Kaggle ships with the images.
Nothing is moved unless every image in the folder has a label; a run that was broken off can be started again.
"""

import argparse
import csv
import sys
from pathlib import Path

import scipy.io

from vqvae2.surroundings import home_path, show_any_name


def labels_of_devkit(folder: Path) -> dict[str, str]:
    """Class folder (WordNet id) by image name, from `data/` of the development kit."""
    meta = scipy.io.loadmat(folder / "data" / "meta.mat", squeeze_me=True)["synsets"]
    wordnet_id = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in meta}
    numbers = (folder / "data" / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    return {f"ILSVRC2012_val_{i:08d}": wordnet_id[int(number)] for i, number in enumerate(numbers, start=1)}


def labels_of_table(path: Path) -> dict[str, str]:
    """Class folder by image name, from the columns ImageId and PredictionString ("n01440764 1 2 3 4 …")."""
    with path.open(newline="") as table:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(table)}


def sort_images(folder: Path, labels: dict[str, str]) -> int:
    """Moves each image of the folder into its class folder; returns how many.

    Raises:
        ValueError: an image has no label; nothing was moved.
    """
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpeg", ".jpg"))
    strangers = [path.name for path in images if path.stem not in labels]
    if strangers:
        raise ValueError(f"{len(strangers)} of {len(images)} images have no label, first {strangers[0]}")
    for path in images:
        target = folder / labels[path.stem]
        target.mkdir(exist_ok=True)
        path.rename(target / path.name)
    return len(images)


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("val", type=home_path, help="folder with ILSVRC2012_val_00000001.JPEG and so on")
    parser.add_argument(
        "labels", type=home_path, help="ILSVRC2012_devkit_t12 (a folder) or LOC_val_solution.csv"
    )
    arguments = parser.parse_args()
    try:
        read = labels_of_devkit if arguments.labels.is_dir() else labels_of_table
        print(f"moved {sort_images(arguments.val, read(arguments.labels))} images")
    except KeyError as error:
        sys.exit(f"error: {arguments.labels} lacks {error}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
