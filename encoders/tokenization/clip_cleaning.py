"""How open_clip cleans texts before it tokenizes them. Needs no torch."""

from __future__ import annotations

import html
import string

import ftfy

CLEANINGS = ("lower", "whitespace", "canonicalize")
"""open_clip's names: `lower` of its own tokenizer, `whitespace` of others' by default, `canonicalize` of SigLIP."""
_WITHOUT_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def clean_text(text: str, cleaning: str) -> str:
    """Mends broken encodings, resolves HTML entities, joins white space.

    Args:
        text: A text.
        cleaning: One of `CLEANINGS`: `lower` lower-cases too, `canonicalize` also drops ASCII punctuation.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else there is nothing to mend
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if cleaning == "canonicalize":
        text = text.translate(_WITHOUT_PUNCTUATION)
    text = " ".join(text.split())
    return text if cleaning == "whitespace" else text.lower()
