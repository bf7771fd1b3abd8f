"""The report of a night in one chat message."""

from __future__ import annotations

from pipelines.catalog.dead_letters import cut_at_word, one_line
from pipelines.report.page import HTML_FILE, NightReport, money

MOST_CHARACTERS = 3500
"""What chat systems take in one message."""
_CAUSES_IN_CHAT = 6


def render_markdown(report: NightReport) -> str:
    """The report in at most `MOST_CHARACTERS`, the verdict first."""
    manifest = report.manifest
    state = f"{report.verdict[:1].lower()}{report.verdict[1:]}"
    lines = [f"**{_plain(report.headline)}** ({state}): {manifest.version}, {manifest.catalog.products:,} products"]
    lines += [f"- {_plain(text)}" for text in report.failed]
    if report.causes:
        lines.append("")
        for cause in report.causes[:_CAUSES_IN_CHAT]:
            lines.append(f"- {'looks broken' if cause.broken else 'please confirm'}: {_plain(cause.says)}")
            lines.append(f"  {_plain(cause.finding.found)}")
            if cause.follows:
                lines.append(f"  follows from it: {_plain(', '.join(each.what for each in cause.follows))}")
    lines += ["", *(f"{each.name}: {each.value}" + (f" ({each.usual})" if each.usual else "") for each in report.tiles)]
    if report.canaries:
        missed = [each for each in report.canaries if each.missing]
        lines.append(f"Canaries: {len(report.canaries) - len(missed):,} of {len(report.canaries):,} found")
    if report.without_answer:
        lines.append(f"Queries without an answer: {report.without_answer:,} of {len(report.queries):,}")
    if report.letters:
        counts = ", ".join(f"{_plain(group.kind)} {group.count:,}" for group in report.letters[:6])
        lines.append(f"Dead letters: {counts}")
    if costs := [money(night.total) for night in report.nights[:2] if night.total is not None]:
        before = f", the night before {costs[1]}" if costs[1:] else ""
        lines.append(f"Cost until this report: {costs[0]}{before}")
    lines += [
        "",
        *(f"{label}: `{command}`" for label, command in report.commands),
        f"{HTML_FILE} beside the version has the rest.",
    ]
    text = "\n".join(lines) + "\n"
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{cut_at_word(text, MOST_CHARACTERS - 40)}\n... ({HTML_FILE} has the rest)\n"


def _plain(text: str) -> str:
    """A text of the catalog for chat: nothing in it is a link, a mention, code or markup."""
    swapped = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "`": "'", "@": "＠", "|": "/"})
    return one_line(text, 400).translate(swapped).replace("://", ":/ /")
