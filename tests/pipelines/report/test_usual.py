from __future__ import annotations

from pipelines.report.usual import tiles_of


def unusual(now: dict[str, float], before: list[dict[str, float]]) -> list[str]:
    return [tile.name for tile in tiles_of(now, before) if tile.unusual]


def test_a_figure_stands_beside_what_it_usually_is():
    before = [{"removed": removed, "overlap": 0.96} for removed in (5, 7, 6)]
    removed, overlap = tiles_of({"removed": 44, "overlap": 0.41}, before)
    assert (removed.value, removed.usual, removed.unusual) == ("44", "usually about 6", True)
    assert (overlap.value, overlap.usual, overlap.unusual) == ("41%", "usually about 96%", True)
    assert removed.meaning.endswith("The 3 nights before had 5 to 7, the middle one 6.")
    assert "The 3 nights" not in tiles_of({"removed": 44}, before[:1])[0].meaning


def test_what_was_so_in_some_night_is_not_unusual():
    before = [{"removed": 5, "overlap": 0.79}, {"removed": 9, "overlap": 0.97}]
    assert unusual({"removed": 12, "overlap": 0.8}, before) == []
    assert unusual({"removed": 12, "overlap": 0.8}, []) == []


def test_one_night_of_another_encoder_makes_no_other_usual():
    before = [{"overlap": overlap} for overlap in (0.75, 0.96, 0.95)]
    assert unusual({"overlap": 0.75}, before) == ["search answers as before"]


def test_products_are_compared_with_the_night_before():
    (tile,) = tiles_of({"products": 850}, [{"products": 500}, {"products": 1000}])
    assert (tile.usual, tile.unusual) == ("the night before 1,000", True)
