"""Reads queries, judgments and purchases from files, and the relevance labels in them.

Files are small tables: Parquet, CSV, TSV or JSON Lines, told apart by their names, anywhere that fsspec reads. Queries
have an id with a text, an image, or both (and perhaps a split); judgments query, product and label; purchases query and
product. Labels are words or numbers, with an order in which tables show them.

Files of others are read as they are: columns go by the names that public sets give them too (`OTHER_NAMES`), judgments
without a query id are known by the query's text, and judgments with a text are queries as well: one file
`query,docid,rating`, or the Shopping Queries set's own (Reddy et al. 2022, "Shopping Queries Dataset: a large-scale
ESCI benchmark for improving product search"), is enough.

Legend: J pairs of a query and a product, each once; Q queries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.catalog.config import nearest
from pipelines.catalog.image_values import ImageRef, image_refs
from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import LEAVE_OUT, EvaluationConfig

ESCI = ("Exact", "Substitute", "Complement", "Irrelevant")
"""The labels of paper A and of the ESCI data, best first."""
OTHER_NAMES = {
    "query_id": ("qid",),
    "product_id": ("docid", "doc_id", "item_id"),
    "label": ("rating", "esci_label", "relevance", "grade"),
}
"""Of the columns that `evaluation.*_field` name if nothing is said, where a file has none of that name."""
MOST_LABELS = 12
"""More different labels are no categories."""
_BY_LETTER = {label[0]: label for label in ESCI}
_BY_LOWER = {label.lower(): label for label in ESCI}


def normal_labels(found: Sequence[str]) -> dict[str, str]:
    """Each label as the tables show it.

    E, S, C, I and the four words in any case become the words, if no other label is among them; whole numbers lose
    their decimal point (1.0 is 1). Others stay as they are.
    """
    words = {label: _BY_LETTER.get(label) or _BY_LOWER.get(label.lower()) for label in found}
    if all(words.values()):
        return {label: str(word) for label, word in words.items()}
    if all(label_number(label) is not None for label in found):
        return {label: f"{float(label):g}" for label in found}
    return {label: label for label in found}


def ordered_labels(labels: Collection[str]) -> tuple[str, ...]:
    """Best first: Exact to Irrelevant, numbers from high to low, then other words by name."""

    def rank(label: str) -> tuple[int, float, str]:
        if label in ESCI:
            return 0, ESCI.index(label), label
        number = label_number(label)
        return (1, -number, label) if number is not None else (2, 0.0, label)

    return tuple(sorted(set(labels), key=rank))


def short_name(label: str) -> str:
    """E, S, C, I for the four words; others as they are."""
    return label[0] if label in ESCI else label


def relevant_labels(labels: Collection[str], asked: Collection[str]) -> frozenset[str]:
    """Which of the labels mean relevant: those asked for, else numbers above 0, else Exact."""
    if asked:
        wanted = set(asked) | set(normal_labels(list(asked)).values())
        return frozenset(wanted & set(labels))
    numbers = {label: label_number(label) for label in labels}
    if None not in numbers.values():
        return frozenset(label for label, number in numbers.items() if number is not None and number > 0)
    return frozenset({ESCI[0]} & set(labels))


def label_grades(labels: Sequence[str], relevant: Collection[str], asked: Mapping[str, int]) -> list[int]:
    """Grade of each label for nDCG: what is asked for, else the number that the label is, else 1 for relevant ones.

    Raises:
        ConfigError: A grade is asked for a label that does not occur, or numbers are not whole.
    """
    if asked:
        normal = normal_labels(list(asked))
        grades = {normal[label]: grade for label, grade in asked.items()}
        unknown = sorted(set(grades) - set(labels) - set(ESCI))
        if unknown:
            raise ConfigError(
                f"evaluation.grades: {unknown[0]!r} is no label of the judgments, which are {list(labels)}"
            )
        return [grades.get(label, 0) for label in labels]
    numbers = [label_number(label) for label in labels]
    whole = [int(number) for number in numbers if number is not None and number == int(number)]
    if len(whole) < len(labels):
        return [int(label in relevant) for label in labels]
    return [max(0, number) for number in whole]


def unlabelled_label(config: EvaluationConfig, labels: Collection[str]) -> str | None:
    """The label that a pair without one counts as; None to leave it out, or where nothing is labelled at all.

    Raises:
        ConfigError: It is of another kind than the labels of the judgments.
    """
    if config.unlabelled == LEAVE_OUT or not labels:
        return None
    (label,) = normal_labels([config.unlabelled]).values()
    of_a_kind = {*labels, *(ESCI if set(labels) <= set(ESCI) else ())}
    if label not in of_a_kind and None in map(label_number, [label, *labels]):
        raise ConfigError(
            f"--unlabelled {config.unlabelled}: expected {LEAVE_OUT} or a label such as those of the judgments, which "
            f"are {list(labels)}"
        )
    return label


def label_number(label: str) -> float | None:
    """The number that a label is; None for a word."""
    try:
        return float(label)
    except ValueError:
        return None


def read_columns(
    uri: str,
    columns: Sequence[str],
    *,
    as_they_are: Sequence[str] = (),
    instead: Mapping[str, str] = MappingProxyType({}),
    only: Mapping[str, str | int | float] = MappingProxyType({}),
) -> pa.Table:
    """Columns of a table, each once, as strings; those `as_they_are` keep their type.

    Args:
        instead: Column that stands for one that the file lacks, also under its other names.
        only: Rows that have these values alone, in columns that the file has; the others do not count.

    Raises:
        ConfigError: The file is missing, cannot be read, lacks a column, or has no such row.
    """
    wanted = [*columns, *only, *instead.values(), *(other for name in columns for other in OTHER_NAMES.get(name, ()))]
    try:
        with storage.localized(uri) as path:
            table = _read_table(path, wanted)
    except storage.StorageError as error:
        raise ConfigError(f"{uri}: cannot be read: {error}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{uri}: expected Parquet, CSV, TSV or JSON Lines by its name, found: {error}") from error
    table = _with_values(table, only, uri)
    names = {name: _named(name, table.column_names, instead) for name in dict.fromkeys(columns)}
    for name, found in names.items():
        if found is None:
            raise ConfigError(f"{uri}: has no column {name!r}. {nearest(name, table.column_names)}")
    found_names = {name: str(found) for name, found in names.items()}
    try:
        return pa.table(
            {
                name: table[found] if name in as_they_are else table[found].cast(pa.string())
                for name, found in found_names.items()
            }
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{uri}: expected text or numbers in {', '.join(names)}: {error}") from error


def _named(name: str, names: Collection[str], instead: Mapping[str, str]) -> str | None:
    """The column that is meant by a name; None where there is none."""
    others = (*OTHER_NAMES.get(name, ()), *([instead[name]] if name in instead else []))
    return next((one for one in (name, *others) if one in names), None)


def _with_values(table: pa.Table, only: Mapping[str, str | int | float], uri: str) -> pa.Table:
    for name, value in only.items():
        if name in table.column_names:
            column = table[name].cast(pa.string())
            kept = table.filter(pc.equal(column, f"{value}"))
            if not len(kept):
                known = [text for text in pc.unique(column).to_pylist() if text is not None]
                raise ConfigError(
                    f"evaluation.only: {uri} has no row whose {name} is {value!r}. {nearest(str(value), known)}"
                )
            table = kept
    return table


def _read_table(path: str, columns: Sequence[str]) -> pa.Table:
    name = path.lower()
    if name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        separated = pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in name else ",")
        # As text from the start: an id such as 00042 is no number.
        as_text = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), null_values=[""], strings_can_be_null=True
        )
        return pyarrow.csv.read_csv(path, parse_options=separated, convert_options=as_text)
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz")):
        return pyarrow.json.read_json(path)
    return pq.read_table(path)


def _read_queries(config: EvaluationConfig) -> pa.Table:
    """Columns id, text and image, each query once; of the split that is asked for."""
    fields = [config.query_id_field, config.query_field, config.query_image_field]
    columns = [name for name in fields if name is not None] + ([] if config.split is None else ["split"])
    # An image that is also the id is a path.
    image_only = [name for name in columns if name == config.query_image_field and name != config.query_id_field]
    uri = str(config.queries or config.judgments or config.purchases)
    table = read_columns(uri, columns, as_they_are=image_only, instead=_text_instead(config), only=config.only)
    if config.split is not None:
        known = pc.unique(table["split"]).to_pylist()
        table = table.filter(pc.equal(table["split"], config.split))
        if not len(table):
            raise ConfigError(
                f"--split {config.split}: {uri} has no such query. {nearest(config.split, filter(None, known))}"
            )
    nothing = pa.nulls(len(table), pa.string())
    texts = nothing if config.query_field is None else table[config.query_field]
    texts = pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)
    images = nothing if config.query_image_field is None else table[config.query_image_field]
    queries = pa.table({"id": table[config.query_id_field], "text": texts, "image": images})
    has_content = pc.or_(pc.is_valid(queries["text"]), pc.is_valid(queries["image"]))
    queries = queries.filter(pc.and_(pc.is_valid(queries["id"]), has_content))
    if not len(queries):
        raise ConfigError(f"{uri}: has no query with an id and a text or picture")
    numbers = pc.index_in(queries["id"], value_set=pc.unique(queries["id"])).to_numpy()
    once = queries.take(pa.array(np.unique(numbers, return_index=True)[1]))
    if len(once) < len(queries) and queries["text"].null_count < len(queries):
        same = pc.equal(pc.fill_null(queries["text"], ""), pc.fill_null(once["text"].take(pa.array(numbers)), ""))
        if not pc.all(same).as_py():
            row = int(np.flatnonzero(~same.to_numpy())[0])
            raise ConfigError(
                f"{uri}: query {queries['id'][row].as_py()!r} stands there with different texts, "
                f"{queries['text'][row].as_py()!r} is one of them; expected each id once"
            )
    return once


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Pairs of a query and a product, each once.

    Attributes:
        queries: int64 `[J]`, rows of the queries, ascending.
        product_ids: string `[J]`.
        labels: int64 `[J]`, positions in a list of labels; zeros where pairs have none.
    """

    queries: np.ndarray
    product_ids: pa.Array
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def filter(self, kept: np.ndarray) -> Pairs:
        """The pairs where `kept`, bool `[J]`."""
        ids = self.product_ids.filter(pa.array(kept))
        return Pairs(queries=self.queries[kept], product_ids=ids, labels=self.labels[kept])


def _text_instead(config: EvaluationConfig) -> dict[str, str]:
    """The query's text stands for an id that a file lacks."""
    return {} if config.query_field is None else {config.query_id_field: config.query_field}


def _read_judgments(config: EvaluationConfig, queries: pa.Table) -> tuple[Pairs, tuple[str, ...], int]:
    """Labelled pairs of these queries, the labels (best first), and the number of pairs with more than one."""
    if config.judgments is None:
        none = np.zeros(0, np.int64)
        return Pairs(queries=none, product_ids=pa.array([], pa.string()), labels=none), (), 0
    table = _read_pairs(config, config.judgments, queries, label_field=config.label_field)
    table = table.filter(pc.is_valid(table["label"]))
    found = pc.unique(table["label"]).to_pylist()
    if len(found) > MOST_LABELS:
        raise ConfigError(
            f"{config.judgments}: {config.label_field} holds {len(found)} different values, such as {found[:3]}; "
            f"expected E, S, C, I or at most {MOST_LABELS} other labels"
        )
    normal = normal_labels(found)
    labels = ordered_labels(normal.values())
    positions = np.array([labels.index(normal[label]) for label in found], np.int64)
    codes = pc.index_in(table["label"], value_set=pa.array(found, pa.string())).to_numpy()
    pairs, worst = _unique_pairs(table, positions[codes])
    two_labels = np.flatnonzero(pairs.labels != worst)
    if len(two_labels) and config.two_labels == "refuse":
        one = int(two_labels[0])
        query = queries["id"][int(pairs.queries[one])].as_py()
        raise ConfigError(
            f"{config.judgments}: {len(two_labels):,} pairs stand there with two labels; product "
            f"{pairs.product_ids[one].as_py()!r} is {labels[pairs.labels[one]]!r} and {labels[worst[one]]!r} for query "
            f"{query!r}; expected one label a pair; "
            "--evaluation.two_labels best takes the better one, leave-out takes none"
        )
    if len(two_labels) and config.two_labels == "leave-out":
        pairs = pairs.filter(pairs.labels == worst)
    return pairs, labels, len(two_labels)


def _read_purchases(config: EvaluationConfig, queries: pa.Table) -> Pairs | None:
    if config.purchases is None:
        return None
    table = _read_pairs(config, config.purchases, queries)
    return _unique_pairs(table, np.zeros(len(table), np.int64))[0]


def _read_pairs(config: EvaluationConfig, uri: str, queries: pa.Table, *, label_field: str | None = None) -> pa.Table:
    """Columns query (row), product and perhaps label, of the queries asked about."""
    fields = {"product": config.product_id_field} | ({} if label_field is None else {"label": label_field})
    instead = _text_instead(config)
    table = read_columns(uri, [config.query_id_field, *fields.values()], instead=instead, only=config.only)
    keys = table[config.query_id_field]
    rows = pc.index_in(keys, value_set=queries["id"].combine_chunks())
    if instead and rows.null_count == len(rows):
        # A file that knows queries by their texts, beside one that gives them ids.
        rows = pc.index_in(keys, value_set=queries["text"].combine_chunks(), skip_nulls=True)
    pairs = pa.table({"query": rows, **{name: table[column] for name, column in fields.items()}})
    return pairs.filter(pc.and_(pc.is_valid(pairs["query"]), pc.is_valid(pairs["product"])))


def _unique_pairs(table: pa.Table, labels: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """Each pair once, by query, with its best label; and the worst one that it is given, int64 `[J]`."""
    products = table["product"].combine_chunks().dictionary_encode()
    codes = products.indices.to_numpy().astype(np.int64)
    queries = table["query"].to_numpy().astype(np.int64)
    keys = queries * len(products.dictionary) + codes
    order = np.lexsort((labels, keys))
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    kept = order[starts]
    ids = products.dictionary.take(pa.array(codes[kept])).cast(pa.string())
    pairs = Pairs(queries=queries[kept], product_ids=ids, labels=labels[kept])
    return pairs, np.maximum.reduceat(labels[order], starts)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQueries:
    """Queries that something is known of: a label, a purchase, or an annotator that will label what is found.

    Attributes:
        ids, texts, images: Of Q queries in the file's order; None for a text or image that a query has not.
        judged: Labelled pairs; their labels are positions in `labels`.
        labels: Every label, best first.
        relevant: Those that mean relevant.
        purchases: Bought pairs; None where no file of purchases was given.
        left_out: Queries of the file that nothing is known of.
        two_labels: Pairs that the judgments give different labels, settled as the configuration says.
    """

    ids: list[str]
    texts: list[str | None]
    images: list[ImageRef | None]
    judged: Pairs
    labels: tuple[str, ...]
    relevant: frozenset[str]
    purchases: Pairs | None
    left_out: int
    two_labels: int = 0

    @property
    def relevant_pairs(self) -> Pairs:
        """The labelled pairs whose label means relevant."""
        is_relevant = np.array([*(label in self.relevant for label in self.labels), False])
        return self.judged.filter(is_relevant[self.judged.labels])

    @property
    def wanted(self) -> Pairs:
        """What recall counts: purchases where there are any, else relevant pairs."""
        return self.relevant_pairs if self.purchases is None else self.purchases


def read_judged_queries(config: EvaluationConfig) -> JudgedQueries:
    """Reads queries and what is known of them.

    Raises:
        ConfigError: A file is missing, cannot be read or lacks a column; a query or a pair is given twice and
            differently; there are too many labels; or nothing is known of any query.
    """
    if config.queries is None and config.judgments is None and config.purchases is None:
        raise ConfigError("no queries: expected --queries FILE (evaluation.queries), or judgments with their texts")
    if config.judgments is None and config.purchases is None and config.annotator is None:
        raise ConfigError(
            "nothing to measure with: expected --judgments FILE, --purchases FILE or evaluation.annotator"
        )
    queries = _read_queries(config)
    judged, labels, two_labels = _read_judgments(config, queries)
    purchases = _read_purchases(config, queries)
    relevant = relevant_labels(labels, config.relevant)
    if purchases is None and config.annotator is None and not relevant:
        raise ConfigError(
            f"{config.judgments}: no product is relevant to any query of {config.queries}; its labels are "
            f"{list(labels)}, expected labels above 0, {ESCI[0]!r}, or those named by --relevant"
        )
    known = np.full(len(queries), config.annotator is not None)
    known[judged.queries] = True
    if purchases is not None:
        known[purchases.queries] = True
    if not known.any():
        files = " and ".join(filter(None, (config.judgments, config.purchases)))
        raise ConfigError(f"no query of {config.queries} is judged in {files}: do they belong together?")
    kept = queries.filter(pa.array(known))
    new_rows = np.cumsum(known) - 1
    images: list[ImageRef | None] = [None] * len(kept)
    if kept["image"].null_count < len(kept):
        images = [refs[0] if refs else None for refs in image_refs(kept["image"].combine_chunks(), 1)]
    return JudgedQueries(
        ids=kept["id"].to_pylist(),
        texts=kept["text"].to_pylist(),
        images=images,
        judged=replace(judged, queries=new_rows[judged.queries]),
        labels=labels,
        relevant=relevant,
        purchases=None if purchases is None else replace(purchases, queries=new_rows[purchases.queries]),
        left_out=int((~known).sum()),
        two_labels=two_labels,
    )
