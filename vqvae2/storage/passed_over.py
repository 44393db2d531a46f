"""What lies beside the images and is not read is said once, in one line a location."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence

from lightning.pytorch.utilities import rank_zero_only

from vqvae2 import distributed

log = logging.getLogger(__name__)


def ending(name: str) -> str:
    """Of a file's name, as counts are said by it."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def files_of_endings(count: Counter, wanted: str = "pictures") -> list[str]:
    """A remark about files, counted by their endings; none if there are none."""
    if not count:
        return []
    listed = ", ".join(f"{end} ({number})" for end, number in count.most_common(5))
    more = ", …" if len(count) > 5 else ""
    return [f"passed over {_number(count.total(), 'file')} other than {wanted}: {listed}{more}"]


def files_by_name(names: Sequence[str], what: str, outcome: str) -> list[str]:
    """A remark about files that are counted and named; none if there are none."""
    if not names:
        return []
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"{_number(len(names), what)} {outcome}: {listed}"]


def say(location: str, remarks: Iterable[str]) -> None:
    """Warns of all remarks about a location in one line, once a run: other ranks see the same."""
    # Before there is a process group, the environment alone knows the rank.
    is_first = distributed.rank() == 0 and rank_zero_only.rank == 0
    if is_first and (text := "; ".join(remarks)):
        _once(f"{location}: {text}")


@functools.cache
def _once(text: str) -> None:
    log.warning("%s", text)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
