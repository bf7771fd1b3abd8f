"""What a search found, as a person reads it: ids whole, texts readable, lists short, within the width at hand."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pipelines.published.tables import found_products, print_result


@dataclass
class Found:
    """A search result over the whole table, best first."""

    products: pa.Table
    offset: int = 0
    members: np.ndarray | None = None

    @property
    def scores(self) -> np.ndarray:
        return np.linspace(1, 0, self.products.num_rows, dtype=np.float32)[None]

    @property
    def product_ids(self) -> list[list[str]]:
        return [self.products["product_id"].to_pylist()]

    def columns(self, names: list[str], query: int) -> pa.Table:
        return self.products.select(names)


def printed(columns: dict, width: int) -> str:
    console = Console(width=width, highlight=False, record=True, file=io.StringIO())
    print_result(Found(pa.table(columns)), title="query", console=console)
    return console.export_text()


HANDLE = "ultra-light-merino-wool-hiking-sock-with-cushioned-sole-2026"
TITLE = "Ultra Light Merino Wool Hiking Sock With Cushioned Sole " * 6
SHOP = {
    "product_id": [HANDLE, "short"],
    "Title": [TITLE, "Mug"],
    "SKU": [["S-1"], ["S-1", "S-2", "S-3", "S-4", "S-5"]],
    "Price": [["9.90", "9.90"], None],
    "Empty": [None, []],
    "Tags": [["a", "b", None], ["c"]],
}


def test_a_shops_table_is_readable():
    text = printed(SHOP, 110)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= 110
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert "".join(row[2] for row in cells).startswith(HANDLE), "the id is there in full"
    title = " ".join(row[3] for row in cells if row[3] and row[3] != "Mug")
    assert title.endswith("…")
    assert TITLE.startswith(title[:-1])
    assert len(title) > 40, "the text has more room than the id"
    assert len([row for row in cells if row[3] and row[3] != "Mug"]) == 2
    assert [row[4] for row in cells if row[4]] == ["S-1", "S-1, S-2, +3"]
    assert "9.90" in text
    assert "a, b" in text
    assert "None" not in text
    assert "[" not in text


def test_columns_that_do_not_fit_are_named():
    columns = {"product_id": ["a"]} | {f"column {number}": ["some words of a text"] for number in range(9)}
    text = printed(columns, 80)
    assert max(map(cell_len, text.splitlines())) <= 80
    shown = [number for number in range(9) if f"column {number}" in text.split("no room for")[0].replace("\n", " ")]
    assert 2 <= len(shown) < 9
    assert "no room for" in text
    assert "column 8" in text.split("no room for")[1]


TEXTS = st.one_of(st.none(), st.text(max_size=90))


@given(
    ids=st.lists(st.text(min_size=1, max_size=70, alphabet="aé漢-_ "), min_size=1, max_size=3),
    names=st.lists(st.text(min_size=1, max_size=12, alphabet="abc "), max_size=6, unique=True),
    value=TEXTS,
    width=st.integers(60, 200),
)
def test_no_line_is_wider_than_the_terminal(ids, names, value, width):
    columns = {"product_id": ids} | {name: pa.array([value] * len(ids), pa.string()) for name in names}
    text = printed(columns, width)
    assert max(map(cell_len, text.splitlines())) <= width


def test_scripts_get_whole_values():
    (first, second) = found_products(Found(pa.table(SHOP)))
    assert first["columns"]["Title"] == TITLE
    assert second["columns"]["SKU"] == ["S-1", "S-2", "S-3", "S-4", "S-5"]
    assert first["columns"]["Empty"] is None


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_narrow_terminal_is_no_error(width):
    assert "short" in printed(SHOP, width).replace("\n", "") or width < 40
