from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.config.terminal import Verbatim, print_lines, table_console


def printed(lines: list[tuple[str, str]], width: int, title: str = "Summary") -> str:
    out = io.StringIO()
    print_lines(lines, title=title, console=Console(width=width, file=out, highlight=False))
    return out.getvalue()


def test_addresses_and_commands_stand_in_one_line():
    path = "/home/you/a shop/" + "folder/" * 20 + "rejected.parquet"
    command = f"python -m pipelines.versions rejected --index '{path}'"
    text = printed([("dead letters", Verbatim(path)), ("", Verbatim(command)), ("why", f"see {path} [or] not")], 60)
    title, first, second, *others = text.splitlines()
    assert title == "Summary"
    assert first == f"dead letters  {path}"
    assert second.strip() == command
    assert others[0] == "why           see /home/you/a"
    assert any(line.strip().startswith("shop/folder/") for line in others), "long words stay whole"
    assert others[-1].strip().endswith("[or] not")


def test_text_is_wrapped_between_words_behind_its_name():
    text = printed([("seconds", ", ".join(f"stage{number} 1.0" for number in range(20))), ("x", "y")], 50, title="")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 50
    assert lines[0].startswith("seconds  stage0 1.0, ")
    assert all(line.startswith("         stage") for line in lines[1:-1])
    assert lines[-1] == "x        y"


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=200))), st.integers(30, 120))
def test_nothing_is_lost(lines, width):
    lines = [(" ".join(name.split()), " ".join(value.split())) for name, value in lines]
    lines = [(name, value) for name, value in lines if (name + value).isprintable()]
    text = printed(lines, width, title="")
    assert text.split() == " ".join(f"{name} {value}" for name, value in lines).split()


def test_the_width_is_that_of_columns_where_output_is_piped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "177")
    assert table_console(110).width == 177
    for nothing in ("", "0", "wide"):
        monkeypatch.setenv("COLUMNS", nothing)
        assert table_console(110).width == 110
