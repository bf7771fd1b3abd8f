"""Faults of what was embedded: vectors and pictures that moved, products that are one product,
and shares of the whole that are not as they were.

As in `columns`, the limits stand against what at most one changed product in twenty can move.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report.columns import (
    CATEGORY_ROWS,
    EDITED,
    EMPTIED,
    MOVED,
    column_faults,
    edited_shares,
)
from pipelines.report.night import (
    ANEW,
    EXAMPLES,
    TEXT,
    UNKNOWN,
    Example,
    Finding,
    Night,
    Pairs,
    matrix_of,
    of_products,
    short,
)
from pipelines.report.texts import flaws, text_faults

TEXT_CHARACTERS = 121
"""Of a text are sampled."""
TURNED = 0.1
"""1 minus the cosine between the middles of a category's vectors in either night."""
UNLIKE = 0.99
"""Cosine below which the vector of a product that was not changed is another one: float16 keeps 0.9999."""
OF_LENGTH = 0.02
"""A vector's length may be so far from the middle one."""
GROWN = 0.02
"""What shares of rejected, degraded, repeated products may grow by."""
LEFT_BEHIND = 0.1
"""Share of the products that came or went."""
OVERLAP = 0.6
"""Mean share of the first ten answers that both nights have, below which answers are said to have moved. Of a good
night about as many stay as products did; a codec that was trained anew may cost another tenth or two."""
FELL = 0.1
"""What the share of titles that find their own product may fall by."""
ERROR_GROWN, LEAST_ERROR, IMBALANCE_GROWN = 1.1, 0.001, 1.5


def find_faults(old: Night | None, new: Night) -> tuple[list[Finding], dict[str, float]]:
    """What a person should look at, the worst first, and the share of the products that was edited, by column.

    Without an `old` night only what is wrong whatever was before.
    """
    pairs = None if old is None else Pairs.of(old, new)
    found = [
        *_whole_faults(old, new, pairs),
        *column_faults(old, new, pairs),
        *flaws(old, new, pairs),
        *text_faults(old, new),
        *_vector_faults(old, new),
    ]
    edited = edited_shares(old, new, pairs) if old is not None and pairs is not None else {}
    return sorted(found, key=lambda each: -each.weight), edited


def _whole_faults(old: Night | None, new: Night, pairs: Pairs | None) -> Iterator[Finding]:
    """Faults of counts and of shares of the whole."""
    for name, (kind, what, one, several, more, without) in _FIGURES.items():
        now, was = new.figures.get(name), None if old is None else old.figures.get(name)
        if now is None:
            continue
        limit = without if was is None else more
        grown = now - (was or 0.0) if name != "own_title" else (was or now) - now
        if grown > limit:
            found = f"{now:.1%}" + (f", it was {was:.1%}" if was is not None else "")
            says = of_products(now, one, several)
            if name == "own_title":
                says = f"Only {now:.1%} of the titles find their own product" + (f", it was {was:.1%}" if was else "")
            yield Finding(kind=kind, what=what, says=says, found=found, value=grown, limit=limit, broken=True)
    if old is None:
        return
    if (overlap := new.figures.get("overlap", 1.0)) < OVERLAP:
        found = f"{overlap:.1%} of the first ten answers are those of the night before, over the queries of this report"
        says = f"Only {overlap:.0%} of the first ten answers are those of the night before"
        yield Finding(
            kind="answers", what="answers moved", says=says, found=found, value=1.0 - overlap, limit=1.0 - OVERLAP
        )
    if new.encoder != old.encoder:
        found = "all rankings were made anew"
        says = "The search model is another one"
        if new.made_before:
            says = f"The search model is again the one of {moment_of(new.made_before)}"
            found += f"; it is not new, but the one that made {new.made_before}: is it meant that it comes back?"
        moved = (
            f"{1.0 - new.figures['overlap']:.0%} of the first ten answers are others"
            if "overlap" in new.figures
            else ""
        )
        says += f": {moved or 'all rankings were made anew'}"
        own = [night.figures["own_title"] for night in (old, new) if "own_title" in night.figures]
        if len(own) == 2:
            found += f"; {own[1]:.1%} of the titles find their own product, it was {own[0]:.1%}"
        what = "an encoder of before" if new.made_before else "another encoder"
        yield Finding(kind="encoder", what=what, says=f"{says}. Is that meant?", found=found, value=1.0, limit=0.1)
    yield from _came_and_went(old, new, pairs)
    before, after = old.catalog, new.catalog
    for word in ("rejected", "degraded", "left_out"):
        shares = [getattr(each, word) / max(1, each.rows_in) for each in (before, after)]
        if abs(shares[1] - shares[0]) > GROWN and (word == "left_out" or shares[1] > shares[0]):
            what, found = word.replace("_", " "), f"{shares[1]:.1%} of the rows, it was {shares[0]:.1%}"
            said = "left out by catalog.where" if word == "left_out" else what
            says = f"{'More' if shares[1] > shares[0] else 'Fewer'} rows are {said}: {found}"
            grown = abs(shares[1] - shares[0])
            yield Finding(
                kind="rows", what=f"more rows {what}", says=says, found=found, value=grown, limit=GROWN, broken=True
            )
    for reason in after.by_reason:
        shares = [each.by_reason.get(reason, 0) / max(1, each.rows_in) for each in (before, after)]
        if shares[1] - shares[0] > GROWN / 2:
            found = f"{after.by_reason[reason]:,} rows ({shares[1]:.1%}), it was {shares[0]:.1%}"
            outcome, _, why = reason.replace("_", " ").partition(": ")
            says = f"{after.by_reason[reason]:,} rows ({shares[1]:.1%}) were {outcome}: {why}"
            yield Finding(
                kind="letters",
                about=reason,
                what=reason.replace("_", " "),
                says=says,
                found=found,
                value=shares[1] - shares[0],
                limit=GROWN / 2,
                broken=True,
                size=after.by_reason[reason],
            )
    errors = old.codec.quantization_error, new.codec.quantization_error
    if errors[0] and errors[1] and errors[1] > max(ERROR_GROWN * errors[0], errors[0] + LEAST_ERROR):
        found = f"quantization error {errors[1]:.4f}, it was {errors[0]:.4f}"
        yield _of_codec(
            "codes fit worse", "Vectors are kept less exactly than before", found, (errors[0], errors[1]), ERROR_GROWN
        )
    sizes = old.codec.list_imbalance, new.codec.list_imbalance
    if sizes[0] and sizes[1] > IMBALANCE_GROWN * sizes[0]:
        found = f"imbalance {sizes[1]:.2f}, it was {sizes[0]:.2f} (1 is even)"
        yield _of_codec("lists are uneven", "Parts of the index grew uneven", found, sizes, IMBALANCE_GROWN)


def _of_codec(what: str, says: str, found: str, values: tuple[float, ...], limit: float) -> Finding:
    return Finding(kind="codec", what=what, says=says, found=found, value=values[1] / values[0], limit=limit)


_FIGURES: dict[str, tuple[str, str, str, str, float, float]] = {
    "own_title": ("own", "titles no longer find their own product", "", "", FELL, 1.0),
    "repeated_content": (
        "repeated",
        "products with the text and picture of another",
        "has the text and picture of another",
        "have the text and picture of another",
        GROWN,
        0.2,
    ),
    "repeated_image": (
        "pictures",
        "products with one and the same picture",
        "shows one and the same picture",
        "show one and the same picture",
        GROWN,
        0.05,
    ),
    "without_image": ("pictures", "products without a picture", "has no picture", "have no picture", EMPTIED, 1.0),
}
"""Of each figure its kind, what is said in short, of one product and of several, how much worse than the night before
it may be, and how large without one."""


def moment_of(version: str) -> str:
    """When a version was made, by its id."""
    return f"{version[:4]}-{version[4:6]}-{version[6:8]} {version[9:11]}:{version[11:13]}"


def _came_and_went(old: Night, new: Night, pairs: Pairs | None) -> Iterator[Finding]:
    """Products that are no longer there, or that are new: as far as both samples tell."""
    sizes = old.catalog.products, new.catalog.products
    if not all(sizes) or pairs is None:
        return
    kept = len(pairs.old) / pairs.sampled
    change = (sizes[1] - sizes[0]) / sizes[0]
    if abs(change) > LEFT_BEHIND:
        found = f"{sizes[0]:,} products became {sizes[1]:,} ({change:+.1%})"
        what = "fewer products" if change < 0 else "more products"
        gone = sizes[0] - sizes[1]
        yield Finding(
            kind="products",
            what=what,
            says=f"{gone:,} products are missing: {found}" if gone > 0 else f"{-gone:,} products more: {found}",
            found=found,
            value=abs(change),
            limit=LEFT_BEHIND,
            broken=gone > 0,
            size=abs(gone),
            examples=_alone(old, pairs.old, first=True) if gone > 0 else _alone(new, pairs.new, first=False),
        )
    elif 1.0 - kept > EDITED + abs(change):
        found = f"about {1.0 - kept:.1%} of the ids are not those of the night before: ids may have changed"
        yield Finding(
            kind="products",
            what="other products",
            says=of_products(1.0 - kept, "has another id, or is another", "have another id, or are others"),
            found=found,
            value=1.0 - kept,
            limit=EDITED,
            broken=True,
            examples=(*_alone(old, pairs.old, first=True)[:2], *_alone(new, pairs.new, first=False)[:2]),
        )


def _alone(night: Night, paired: np.ndarray, *, first: bool) -> tuple[Example, ...]:
    """Sampled products of one night, the `first` or the second, that the other one does not have."""
    rows = night.rows[~np.isin(night.rows, paired)][:EXAMPLES].tolist()
    return tuple((row, None) if first else (None, row) for row in rows)


def _vector_faults(old: Night | None, new: Night) -> Iterator[Finding]:
    if new.sample is None or not new.sample.num_rows:
        return
    vectors = matrix_of(new.sample.column("vector"), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    usable = np.isfinite(lengths)
    middle = float(np.median(lengths[usable])) if usable.any() else 0.0
    usable &= (np.abs(lengths - middle) <= OF_LENGTH * middle) & (lengths > 0) if _is_unit(middle) else lengths > 0
    if (share := float(1.0 - usable.mean())) > 0.001:
        found = f"{share:.1%} of the sampled vectors are not finite, zero, or of another length"
        says = f"About {share:.1%} of the vectors are damaged: these products cannot be found"
        rows = new.sample["row"].to_numpy()[~usable][:EXAMPLES].tolist()
        yield Finding(
            kind="vectors",
            what="vectors are damaged",
            says=says,
            found=found,
            value=share,
            limit=0.001,
            broken=True,
            examples=tuple((None, row) for row in rows),
        )
    if old is None or old.sample is None or old.encoder != new.encoder:
        return
    before = matrix_of(old.sample.column("vector"), np.float16)
    if before.shape[1] != vectors.shape[1]:
        return
    at = {name: row for row, name in enumerate(old.sample["product_id"].to_pylist())}
    ids = new.sample["product_id"].to_pylist()
    found_rows = [(at[name], row) for row, name in enumerate(ids) if name in at and usable[row]]
    rows = np.array(found_rows, np.int64).reshape(-1, 2)
    if not len(rows):
        return
    cosines = _cosines(before[rows[:, 0]], vectors[rows[:, 1]])
    both = ((old.sample, rows[:, 0]), (new.sample, rows[:, 1]))
    digests = [sample["content_fingerprint"].take(pa.array(own)) for sample, own in both]
    edited = pc.not_equal(*digests).to_numpy(zero_copy_only=False).astype(bool)
    same_text = pc.equal(*(sample["text"].take(pa.array(own)) for sample, own in both)).fill_null(False)
    pictures = edited & same_text.to_numpy(zero_copy_only=False).astype(bool)
    if pc.all(pc.equal(digests[1], UNKNOWN)).as_py():  # what made the vectors is not known
        edited, pictures = cosines < UNLIKE, np.zeros(len(rows), bool)
    middle = float(np.median(cosines[edited])) if edited.any() else 1.0

    def worst(which: np.ndarray) -> tuple[Example, ...]:
        places = np.flatnonzero(which)
        places = places[np.argsort(np.nan_to_num(cosines[places], nan=-1.0), kind="stable")][:EXAMPLES]
        of_both = [sample["row"].to_numpy()[own[places]].tolist() for sample, own in both]
        return tuple(zip(*of_both, strict=True))

    moved_by = f"the median cosine of their vectors to those of before is {middle:.2f}"
    if pictures.mean() > ANEW and new.figures.get("without_image", 1.0) < 1.0:
        found = f"{pictures.mean():.1%} of the products have another picture than the night before, and the same text "
        found += f"(as far as its first {TEXT_CHARACTERS} characters tell); {moved_by}"
        share = float(pictures.mean())
        says = of_products(share, "has another picture", "have another picture") + ", and the text it had"
        yield Finding(
            kind="pictures",
            what="pictures changed",
            says=says.replace("text it had", "text they had") if share < 0.95 else says,
            found=found,
            value=share,
            limit=ANEW,
            examples=worst(pictures),
        )
    elif edited.mean() > ANEW:
        share = float(edited.mean())
        found = f"{share:.1%} of the products have another text or picture than the night before; {moved_by}"
        yield Finding(
            kind="anew",
            what="products were embedded anew",
            says=of_products(share, "has another text or picture", "have another text or picture"),
            found=found,
            value=share,
            limit=ANEW,
            examples=worst(edited),
            shows=TEXT,
        )
    drifted = float((cosines[~edited] < UNLIKE).mean()) if (~edited).any() else 0.0
    if drifted > 0.01:
        found = f"{drifted:.1%} of the products that nobody changed have another vector: of another encoder, or damaged"
        yield Finding(
            kind="vectors",
            what="vectors changed by themselves",
            says=f"{drifted:.1%} of the products are ranked otherwise though nobody changed them: a damaged model?",
            found=found,
            value=drifted,
            limit=0.01,
            broken=True,
            examples=worst(~edited & (cosines < UNLIKE)),
        )
    moved = float((cosines < 0.5).mean())
    if moved > MOVED:
        found = f"{moved:.1%} of the products are far from where they were (cosine below 0.5)"
        says = of_products(moved, "is looked for among others", "are looked for among others")
        yield Finding(
            kind="moved",
            what="products moved far",
            says=says,
            found=found,
            value=moved,
            limit=MOVED,
            examples=worst(cosines < 0.5),
        )
    yield from _category_drift(old, new, before, vectors, rows)


def _is_unit(length: float) -> bool:
    """Whether vectors of this length are meant to be of length 1 (imported ones need not be)."""
    return abs(length - 1.0) <= 10 * OF_LENGTH


def _category_drift(
    old: Night, new: Night, before: np.ndarray, after: np.ndarray, pairs: np.ndarray
) -> Iterator[Finding]:
    """Categories whose middle vector turned, of the products that both nights have: `pairs` are their places in either
    sample. What came and went turns a small category by itself.
    """
    before, after = before[pairs[:, 0]], after[pairs[:, 1]]
    worst: tuple[float, str] = (0.0, "")
    for name in new.columns:
        kind = new.products.schema.field(name).type
        if name not in old.columns or not pa.types.is_string(kind) or old.products.schema.field(name).type != kind:
            continue
        values = [
            np.array([value or "" for value in night.products.column(name).take(night.sample["row"]).to_pylist()])[own]
            for night, own in zip((old, new), pairs.T, strict=True)
            if night.sample is not None
        ]
        categories = set(values[0]) & set(values[1]) - {""}
        if not 1 < len(categories) <= len(values[0]) // CATEGORY_ROWS:
            continue
        for category in categories:
            both = [vectors[own == category] for vectors, own in zip((before, after), values, strict=True)]
            if min(map(len, both)) < CATEGORY_ROWS:
                continue
            middles = [np.nan_to_num(each).mean(axis=0, keepdims=True) for each in both]
            turned = 1.0 - float(_cosines(*middles)[0])
            if turned > max(TURNED, worst[0]):
                worst = turned, f"the products of {name} {short(str(category))} moved together: cosine {1 - turned:.2f}"
    if worst[1]:
        says = f"A whole category is found by other words or pictures: {worst[1]}"
        yield Finding(kind="moved", what="a category moved", says=says, found=worst[1], value=worst[0], limit=TURNED)


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
