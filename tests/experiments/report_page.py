"""The page that a report is, as tests read it."""

import re
from html.parser import HTMLParser

import pytest

DASH = "\N{EN DASH}"
VOID = {"img", "meta", "wbr"}
NAMES = {  # of the made-up run's sets, as the page has them
    "samples": "samplesruns/fake",
    "samples@0.25": "samples, best 25 %",
    "held_out": "held-out images",
    "reconstructions": "reconstructions",
}


class Page(HTMLParser):
    """A page's text, tables, ids and references; fails on tags that are not balanced."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.text = source, ""
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tables: list[dict[str, dict[str, str]]] = []  # rows of cells by the names of both
        self.captions: list[str] = []
        self.strong: list[str] = []
        self._cells: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [found[name] for name in ("src", "href", "srcset", "data") if name in found]
        if tag == "table":
            self._cells = []
            self.captions.append("")
        elif tag == "tr":
            self._cells.append([])
        elif tag in ("td", "th"):
            self._cells[-1].append("")
        elif tag == "strong":
            self.strong.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            header, *rows = self._cells
            assert len({cells[0] for cells in rows}) == len(rows)  # each has a name of its own
            self.tables.append({cells[0]: dict(zip(header[1:], cells[1:], strict=True)) for cells in rows})

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.captions[-1] += data
        if "strong" in self.open:
            self.strong[-1] += data
        if {"td", "th"} & set(self.open):
            self._cells[-1][-1] += data

    def table(self, caption: str) -> dict[str, dict[str, str]]:
        """The only one whose caption begins so."""
        found = [
            table for name, table in zip(self.captions, self.tables, strict=True) if name.startswith(caption)
        ]
        assert len(found) == 1
        return found[0]


def cell(table, row_name: str, column: str) -> str:
    """By how the names begin, as locations and arrows follow them."""
    rows = [cells for name, cells in table.items() if name.replace("\xa0", " ").startswith(row_name)]
    found = [text for name, text in rows[0].items() if name.startswith(column)]
    assert len(found) == 1, (row_name, column)
    return found[0]


def values(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"-?[\d,]*\d\.?\d*(?:e[-+]\d+)?", text)]


def close(text: str, *wanted: float) -> bool:
    """A cell says these figures, to the digits that it shows: four, or at least three of small ones."""
    return values(text) == pytest.approx(list(wanted), rel=1e-2 if min(map(abs, wanted)) < 0.1 else 1e-3)
