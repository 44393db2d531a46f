"""The recipes of configs/, and their jobs, of which not each has a file."""

from pathlib import Path

from vqvae2.cli.composition import read_config
from vqvae2.cli.recipes import jobs_of

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "run" in read_config(path))
JOBS = [f"{recipe}_{job}" for recipe in RECIPES for job in jobs_of(CONFIGS / f"{recipe}.yaml")]
FACES = dict.fromkeys(("ffhq", "ffhq256", "ffhq1024", "celeba"), 0)
NUM_CLASSES = {"demo": 10, "mnist": 10, "cifar10": 10, "imagenet": 1000, **FACES}


def num_classes(recipe: str) -> int:
    """Of the data set, with which the name of a recipe ends."""
    return NUM_CLASSES[recipe.rpartition("_")[2]]
