"""The jobs of a recipe in the order in which they are run, one a line: `VERB JOB`.

python -m vqvae2.cli.stages configs/demo.yaml
"""

import argparse
import sys
from pathlib import Path

from vqvae2.cli.composition import UsageError
from vqvae2.cli.recipes import stages


def main(args: list[str] | None = None) -> None:
    """Prints them; what is wrong with the recipe ends it in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="such as configs/demo.yaml")
    try:
        found = stages(parser.parse_args(args).recipe)
    except UsageError as error:
        sys.exit(f"error: {error}")
    for job, verb in found:
        print(verb, job)


if __name__ == "__main__":
    main()
