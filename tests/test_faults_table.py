"""Each fault of the table has the test that it names."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROW = re.compile(r"\| `([\w/]+\.py)::(\w+)` \|$", re.MULTILINE)


def test_every_test_of_the_table_exists():
    text = (TESTS / "FAULTS.md").read_text(encoding="utf-8")
    rows = ROW.findall(text)
    assert len(rows) == sum(
        line.startswith("| ") and "fault | what" not in line for line in text.splitlines()
    )
    missing = [f"{file}::{name}" for file, name in rows if f"def {name}(" not in (TESTS / file).read_text()]
    assert missing == []
