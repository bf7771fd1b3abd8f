"""Tells what the scores of a search's answers are made of, and why a product is not among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from index_builder.explanation import Explanation, WhyNot
from pipelines.config.terminal import print_lines

LEAST_ROUNDING = 1e-4
"""What is in no part of a score is shown from here on."""


def explained(explanation: Explanation) -> dict[str, Any]:
    """An explanation as plain values, for scripts."""
    values = asdict(explanation)
    return {name: values[name] for name in values if name not in ("product_id", "row")}


def print_explanations(found: Sequence[Explanation], *, first_rank: int, mixed: str, console: Console) -> None:
    """Prints a line an answer: its score, list and parts.

    Args:
        first_rank: Of the first one.
        mixed: Why the vectors have no parts of text and image, printed where they have none.
    """
    table = Table(title="what the scores are made of", title_justify="left", title_style="bold")
    for name in ("rank", "score", "by codes"):
        table.add_column(name, justify="right")
    table.add_column("product_id", overflow="fold")
    refined = any(each.refined_score is not None for each in found)
    parts = list(found[0].parts) if found else []
    rounded = any(each.parts and abs(each.rounding) >= LEAST_ROUNDING for each in found)
    names = [*(["re-ranked"] if refined else []), *parts, *(["rest"] if rounded else []), "list", "list's rank"]
    for name in names:
        table.add_column(name, justify="right")
    for rank, each in enumerate(found, start=first_rank):
        values = {name: f"{share:.4f}" for name, share in each.parts.items()}
        values |= {"re-ranked": "" if each.refined_score is None else f"{each.refined_score:.4f}"}
        values |= {"rest": f"{each.rounding:.4f}", "list": f"{each.list_number:,}"}
        values |= {"list's rank": f"{each.list_rank:,} ({each.probed:,} probed)"}
        shown = (str(rank), f"{each.score:.4f}", f"{each.code_score:.4f}", escape(each.product_id))
        table.add_row(*shown, *(values[name] for name in names))
    console.print(table)
    if found and not parts:
        console.print(mixed, markup=False)


def why_not_values(why: WhyNot, letters: pa.Table | None) -> dict[str, Any]:
    """Why a product is not among the answers as plain values, for scripts, with its dead letters."""
    values = asdict(why) | {"failed": list(why.failed), "letters": [] if letters is None else letters.to_pylist()}
    values["status"] = status_of(why, letters)
    values["explanation"] = None if why.explanation is None else explained(why.explanation)
    return values


def status_of(why: WhyNot, letters: pa.Table | None) -> str:
    """`rejected` where a letter says why a product is not in the version; else as the index has it."""
    if why.status == "not_in_version" and letters is not None:
        return "rejected" if "rejected" in letters["outcome"].to_pylist() else why.status
    return why.status


def print_why_not(why: WhyNot, letters: pa.Table | None, *, version: str, asked: Mapping[str, int]) -> None:
    """Prints where a product is, or why it is not among the answers, with its dead letters."""
    lines = [("product", why.product_id), ("answer", _sentence(why, status_of(why, letters), version, asked))]
    lines += [("filter", f"not {condition}") for condition in why.failed]
    if (of := why.explanation) is not None:
        by = f", {of.code_score:.4f} by its codes" if of.refined_score is not None else ""
        last = "" if why.last_score is None else f"; the last answer has {why.last_score:.4f}"
        lines.append(("score", f"{of.score:.4f}{by}{last}"))
        lines += [("", f"{name} {share:.4f}") for name, share in of.parts.items()]
        lines.append(("list", f"number {of.list_number:,}, rank {of.list_rank:,} among lists; {of.probed:,} probed"))
    for letter in [] if letters is None else letters.to_pylist():
        where = f" ({letter['file']}, {letter['unit']} {letter['number']})" if letter["number"] is not None else ""
        said = f"at {letter['stage']}: {letter['reason']}, {letter['detail']}{where}"
        lines.append((str(letter["outcome"]), said))
    print_lines(lines)


def _sentence(why: WhyNot, status: str, version: str, asked: Mapping[str, int]) -> str:
    ranked = f"rank {why.rank:,}" if why.rank is not None else "a rank beyond 10,000"
    offset, k = asked["offset"], asked["k"]
    then = f" finds it, at rank {why.needed_rank:,}" if why.needed_rank is not None else " finds it"
    if why.needed_rank is not None and why.needed_rank > offset + k:
        then = f" gives it rank {why.needed_rank:,}, behind the last answer: -k is {k:,}"
    return {
        "found": f"found, {ranked}",
        "earlier_page": f"{ranked}, on an earlier page: --offset is {offset:,}",
        "other_of_group": f"its group is found at {ranked} by {why.best_member}, which scores more",
        "below_k": f"{ranked}, behind the last answer: -k is {k:,}" + (f", --offset {offset:,}" if offset else ""),
        "list_not_probed": f"its list was not probed; --nprobe {why.needed}{then}",
        "not_a_candidate": f"its codes rank it too low to be re-ranked; --refine-factor {why.needed}{then}",
        "filtered_out": "it does not pass the filter",
        "rejected": f"it was rejected, and is not in {version}",
        "not_in_version": f"there is no such product in {version}, and no letter about one that was rejected",
    }[status]
