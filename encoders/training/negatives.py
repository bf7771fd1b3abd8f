"""What stands against a pair's query whatever the batch: seen negatives, worthless pairs, mined ones, a teacher's.

Product ids become rows of the products that were read, -1 where a list ends or a product is not known.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.errors import EncoderConfigError
from encoders.training.config import PairsConfig

# Finds negatives, a list of product ids a pair: of the pairs' query texts (None: none) and product ids, and of all that
# is known to belong to each text.
NegativeMiner = Callable[[Sequence[str | None], Sequence[str], Mapping[str | None, Collection[str]]], list[list[str]]]
TEACHER_COLUMNS = ("query", "positive", "negative", "positive_score", "negative_score")
_WORDS = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}


def negative_rows(table: pa.Table, config: PairsConfig, known: pa.Array) -> np.ndarray:
    """Rows of the seen negatives of each pair; raises where one is unknown and that is an error."""
    if config.negatives_field is None:
        return np.full((len(table), 0), -1, np.int64)
    lists = table[config.negatives_field].combine_chunks()
    names = pc.list_flatten(lists).cast(pa.string())
    strange = names.filter(pc.invert(pc.is_in(names, value_set=known)))
    if len(strange) and config.unknown_products == "error":
        message = f"data.negatives_field: {len(strange)} ids are no product of the data (first: {strange[0].as_py()!r})"
        raise EncoderConfigError(message)
    return rows_of_lists(lists, known)


def rows_of_lists(lists: pa.Array, known: pa.Array) -> np.ndarray:
    """Lists of product ids as rows of the products, -1 padded and where one is unknown: int64 `[pairs, most]`."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    rows = pc.index_in(pc.list_flatten(lists).cast(pa.string()), value_set=known)
    padded = np.full((len(lists), int(lengths.max(initial=0))), -1, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = pc.fill_null(rows, -1).to_numpy()
    return padded


def weights_of(labels: pa.Array, weights: Mapping[str, float], config: PairsConfig) -> np.ndarray:
    """What each pair weighs, float32; E, S, C, I and the four words stand for each other."""
    by_word = {_WORDS.get(label, label).lower(): weight for label, weight in weights.items()}
    found = pc.dictionary_encode(labels)
    names = found.dictionary.to_pylist()
    unknown = [name for name in names if _WORDS.get(name, name).lower() not in by_word]
    strange = (
        by_word.keys() - {_WORDS.get(name, name).lower() for name in names} - {word.lower() for word in _WORDS.values()}
    )
    if unknown or labels.null_count or strange:
        what = (
            f"{unknown[0]!r} has no weight" if unknown else f"no pair is labelled {next(iter(sorted(strange)), '')!r}"
        )
        what = f"{labels.null_count} pairs have no label" if labels.null_count else what
        raise EncoderConfigError(
            f"training.label_weights is {dict(weights)}: {what}; the labels in "
            f"{config.label_field!r} of {config.uri!r} are {', '.join(sorted(names))}"
        )
    by_code = np.array([by_word[_WORDS.get(name, name).lower()] for name in names], np.float32)
    return by_code[found.indices.to_numpy()]


def without_worthless(
    table: pa.Table, validation_start: int | None, weights: np.ndarray, config: PairsConfig
) -> tuple[pa.Table, int | None, np.ndarray, dict[str | None, list[str]]]:
    """Pairs of weight 0 become negatives of their query text: the other pairs, and these lists of product ids."""
    kept = weights > 0
    if not kept.any():
        raise EncoderConfigError(f"training.label_weights: every pair of {config.uri!r} weighs 0, so none is learned")
    worthless: dict[str | None, list[str]] = defaultdict(list)
    if config.query_field is not None:
        lost = table.filter(pa.array(~kept))
        texts, ids = (column_of(lost, name).to_pylist() for name in (config.query_field, config.id_field))
        for query, product_id in zip(texts, ids, strict=True):
            if query is not None:
                worthless[query].append(product_id)
    if validation_start is not None:
        validation_start = int(kept[:validation_start].sum())
    return table.filter(pa.array(kept)), validation_start, weights[kept], worthless


def mined(
    table: pa.Table,
    validation_start: int | None,
    mine: NegativeMiner,
    config: PairsConfig,
) -> list[list[str]]:
    """Mined negatives of every pair that is not held out, without what is known to belong to its query."""
    texts, ids = (column_of(table, str(name)).to_pylist() for name in (config.query_field, config.id_field))
    chosen: dict[str | None, set[str]] = defaultdict(set)
    for query, product_id in zip(texts, ids, strict=True):
        chosen[query].add(product_id)
    trained = len(table) if validation_start is None else validation_start
    found = mine(texts[:trained], ids[:trained], chosen)
    return [*map(list, found), *([] for _ in range(len(table) - trained))]


def teacher_scores(table: pa.Table, config: PairsConfig) -> pa.Table:
    """A teacher's columns, texts as strings and scores as float64; raises where they are not what they should be."""
    uri = str(config.teacher_uri)
    kinds = [pa.string()] * 3 + [pa.float64()] * 2
    try:
        columns = [table[name].combine_chunks().cast(kind) for name, kind in zip(TEACHER_COLUMNS, kinds, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise EncoderConfigError(f"data.teacher_uri is {uri!r}: expected texts, ids and two scores, {error}") from error
    whole = functools.reduce(pc.and_, [*map(pc.is_valid, columns), *map(pc.is_finite, columns[3:])])
    if not len(table) or not pc.all(pc.fill_null(whole, False)).as_py():
        row = int(np.flatnonzero(~pc.fill_null(whole, False).to_numpy(zero_copy_only=False))[0]) if len(table) else 0
        raise EncoderConfigError(
            f"data.teacher_uri is {uri!r}: row {row + 1:,} of {len(table):,} lacks a value, or its score is not "
            f"finite; expected {', '.join(TEACHER_COLUMNS)} in each"
        )
    return pa.table(columns, names=[*TEACHER_COLUMNS])


def taught(
    teacher: pa.Table, queries: Sequence[str | None], ids: Sequence[str], known: pa.Array, config: PairsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the teacher's negatives of each pair, int64 `[pairs, most]`, and its margins, float32 likewise."""
    margins = pc.subtract(teacher["positive_score"], teacher["negative_score"]).to_pylist()
    rows = pc.index_in(teacher["negative"].combine_chunks(), value_set=known).to_pylist()
    by_pair: dict[tuple[str | None, str], list[tuple[int, float]]] = defaultdict(list)
    scored = zip(teacher["query"].to_pylist(), teacher["positive"].to_pylist(), rows, margins, strict=True)
    for query, positive, row, margin in scored:
        by_pair[query, positive].append((-1 if row is None else row, margin))
    pairs = list(zip(queries, ids, strict=True))
    known_pairs = set(pairs)
    strange = sum(len(found) for pair, found in by_pair.items() if pair not in known_pairs)
    unknown = rows.count(None)
    if strange == len(rows) or (config.unknown_products == "error" and (strange or unknown)):
        raise EncoderConfigError(
            f"data.teacher_uri is {config.teacher_uri!r}: of its {len(rows):,} rows {strange:,} have a query and "
            f"positive that are no pair of data.uri, and {unknown:,} a negative that is no product of the data; "
            "expected scores of these pairs (such rows are left out by data.unknown_products: drop)"
        )
    most = max((len(by_pair[pair]) for pair in pairs if pair in by_pair), default=0)
    found_rows = np.full((len(pairs), most), -1, np.int64)
    of_teacher = np.full((len(pairs), most), np.nan, np.float32)
    for place, pair in enumerate(pairs):
        for column, (row, margin) in enumerate(by_pair.get(pair, ())):
            if row >= 0:
                found_rows[place, column], of_teacher[place, column] = row, margin
    return found_rows, of_teacher


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column as one array of strings."""
    return table[name].combine_chunks().cast(pa.string())
