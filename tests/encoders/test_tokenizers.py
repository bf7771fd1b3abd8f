"""One tokenizer.json a text tower: the ids of transformers and of open_clip, whoever runs it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from encoders.errors import CheckpointError
from encoders.tokenizers import (
    CHARACTERS_PER_TOKEN,
    CLEANINGS,
    FastTokenizer,
    OpenClipTokenizer,
    clean_text,
    clip_tokenizer,
)
from tests.encoders.tiny import CLIP_MODEL_CONFIG, WORDS, save_tiny_siglip_tokenizer, tiny_tokenizer

TEXTS = ["red dress", "a", "small wooden chair for a mug with a lamp, large and green", ""]
TITLES = [
    "",
    "Women's Floral-Print Midi Dress, Größe 42 – 100% Cotton!!",
    "L&#39;Oréal &amp;amp; Co. «Café» 12.5oz/355ml (pack of 2)",
    "don't they'll WE'VE i'm she'd it'S",
    "ＦＵＬＬ　ｗｉｄｔｈ ㎏ ½ №5 ²",
    "手机壳 スマホケース 휴대폰 чехол غطاء",
    "🎁👗 gift  \t two\nlines\r\n  ",
    "schÃ¶n \x1b[31m red \x00 zero ‘curly’ “quotes” ﬁsh",
    "<start_of_text> inside <END_OF_TEXT> too",
    "x" * 400,
    "word " * 100,
]
# Not of code points that Unicode has given to nothing: the two regex libraries take those for different kinds.
PLAIN = r"[A-Za-z0-9 '&;.,/-]{0,60}"
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
ANY_TEXTS = st.lists(st.text(ASSIGNED, max_size=60) | st.from_regex(PLAIN, fullmatch=True), max_size=4)

BYTE_PAIRS = SimpleTokenizer()
# Hugging Face tokenizers: what fills texts up, and the options of open_clip's config.
SIGLIP_KINDS = [
    ("</s>", {}),
    ("</s>", {"clean": "canonicalize"}),
    ("<pad>", {"clean": "lower"}),
    ("<pad>", {"strip_sep_token": True}),
]


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory) -> FastTokenizer:
    """open_clip's own table, by way of its file."""
    folder = tmp_path_factory.mktemp("clip")
    clip_tokenizer({}).save(folder)
    return FastTokenizer.load(folder, max_tokens=77, cleaning="lower")


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory) -> Path:
    return save_tiny_siglip_tokenizer(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module", params=SIGLIP_KINDS, ids=str)
def siglip(request, tmp_path_factory) -> tuple[FastTokenizer, HFTokenizer]:
    pad_token, options = request.param
    folder = save_tiny_siglip_tokenizer(tmp_path_factory.mktemp("siglip"), pad_token=pad_token)
    made, saved = clip_tokenizer(siglip_config(context_length=12, **options), folder), tmp_path_factory.mktemp("saved")
    made.save(saved)
    options = {"cleaning": made.cleaning, "dropped_id": made.dropped_id}
    theirs = HFTokenizer(str(folder), context_length=12, **request.param[1])
    return FastTokenizer.load(saved, max_tokens=None, **options), theirs


def siglip_config(*, context_length: int = 77, **options) -> dict:
    return {"hf_tokenizer_name": "org/siglip", "context_length": context_length, "tokenizer_kwargs": options}


def same_byte_pairs(tokenizer: FastTokenizer, texts: list[str], theirs: SimpleTokenizer = BYTE_PAIRS) -> bool:
    found = tokenizer.tokenize(texts)
    expected = [[theirs.sot_token_id, *theirs.encode(text), theirs.eot_token_id] for text in texts]
    assert found.truncated == sum(1 for ids in expected if len(ids) > 77)
    cut = [ids if len(ids) <= 77 else [*ids[:76], theirs.eot_token_id] for ids in expected]
    lengths = [len(ids) for ids in cut]
    return np.diff(found.offsets).tolist() == lengths and found.ids.tolist() == [token for ids in cut for token in ids]


def same_siglip(siglip: tuple[FastTokenizer, HFTokenizer], texts: list[str]) -> bool:
    ours, theirs = siglip
    found = ours.tokenize(texts)
    assert (len(found), found.ids.dtype, found.pad_id) == (len(texts), np.int64, theirs.tokenizer.pad_token_id)
    return not texts or np.array_equal(found.padded()[0], theirs(texts).numpy())


def test_batches_hold_every_text_once_longest_first():
    tokens = FastTokenizer(tiny_tokenizer(), max_tokens=40).tokenize(TEXTS)
    seen, widths = [], []
    for rows, ids, mask in tokens.batches(2):
        assert ids.shape == mask.shape == (len(rows), mask.sum(1).max())
        for row, line, there in zip(rows, ids, mask, strict=True):
            assert np.array_equal(line[there], tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]])
            assert (line[~there] == tokens.pad_id).all()
        seen += rows.tolist()
        widths.append(ids.shape[1])
    assert sorted(seen) == [0, 1, 2, 3]
    assert widths == sorted(widths, reverse=True)


def test_padding_and_truncation_of_the_file_do_not_leak_in():
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(length=30)
    tokenizer.enable_truncation(3)
    plain = FastTokenizer(tiny_tokenizer(), max_tokens=20).tokenize(TEXTS)
    cleaned = FastTokenizer(tokenizer, max_tokens=20).tokenize(TEXTS)
    assert np.array_equal(plain.ids, cleaned.ids)
    assert np.array_equal(plain.offsets, cleaned.offsets)


def test_long_texts_are_cut_and_counted():
    tokens = FastTokenizer(tiny_tokenizer(), max_tokens=6).tokenize(["red " * 4, "red " * 5, "red " * 50])
    assert np.diff(tokens.offsets).tolist() == [6, 6, 6]
    assert tokens.truncated == 2
    assert (tokens.ids.reshape(3, 6)[:, -1] == tiny_tokenizer().token_to_id("[SEP]")).all()


def test_no_texts():
    tokens = FastTokenizer(tiny_tokenizer(), max_tokens=6).tokenize([])
    assert len(tokens) == 0
    assert list(tokens.batches(4)) == []


def test_a_text_without_tokens_is_one_of_padding():
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.Sequence([])
    tokens = FastTokenizer(tokenizer, max_tokens=6).tokenize(["\u200b", "red red", ""])
    assert np.diff(tokens.offsets).tolist() == [1, 2, 1]
    assert tokens.ids[[0, 3]].tolist() == [tokens.pad_id] * 2


def test_save_and_load(tmp_path):
    tokenizer = FastTokenizer(tiny_tokenizer(), max_tokens=5)
    tokenizer.save(tmp_path)
    first = (tmp_path / "tokenizer.json").read_bytes()
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == first
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).truncation is None
    loaded = FastTokenizer.load(tmp_path, max_tokens=5)
    assert np.array_equal(loaded.tokenize(TEXTS).ids, tokenizer.tokenize(TEXTS).ids)


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_missing_or_broken_file(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"is not a tokenizer" if content else r"no tokenizer\.json.*export it again"
    ):
        FastTokenizer.load(tmp_path, max_tokens=5)


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("text", [*TITLES, "_snake_ & (brackets) [x]_", "a ‑ b… ‘c’ &lt;d&gt; _&amp;_"])
def test_cleaning_is_open_clips(cleaning, text):
    assert clean_text(text, cleaning) == get_clean_fn(cleaning)(text)


@given(st.sampled_from(CLEANINGS), st.text(max_size=60) | st.from_regex(PLAIN, fullmatch=True))
@example("canonicalize", " _ ")
def test_cleaning_is_open_clips_for_any_text(cleaning, text):
    assert clean_text(text, cleaning) == get_clean_fn(cleaning)(text)


@pytest.mark.parametrize("text", TITLES)
def test_byte_pairs_are_open_clips(byte_pairs, text):
    assert same_byte_pairs(byte_pairs, [text])


@given(ANY_TEXTS)
@example(["a" * 3, "İstanbul", "ǅ ß ẞ"])
def test_byte_pairs_are_open_clips_for_any_text(byte_pairs, texts):
    assert same_byte_pairs(byte_pairs, texts)


def test_every_word_of_the_table(byte_pairs):
    words = [piece.removesuffix("</w>") for piece in BYTE_PAIRS.encoder if piece.isascii() and piece.endswith("</w>")]
    assert len(words) > 30_000
    assert same_byte_pairs(byte_pairs, [*WORDS, *words])


@pytest.mark.parametrize("cleaning", ["canonicalize", "whitespace"])
def test_byte_pairs_after_another_cleaning(cleaning):
    ours = clip_tokenizer({"tokenizer_kwargs": {"clean": cleaning}})
    assert isinstance(ours, FastTokenizer)
    assert same_byte_pairs(ours, TITLES, SimpleTokenizer(clean=cleaning))


def test_byte_pairs_of_a_shorter_context():
    texts = ["Red dress!", "caffè latte mug", "word " * 40, "", "red " * 14, "red " * 15]
    tokens = clip_tokenizer(CLIP_MODEL_CONFIG["text_cfg"]).tokenize(texts)
    expected = SimpleTokenizer(context_length=16)(texts).numpy()
    ids, mask = tokens.padded()
    assert np.array_equal(ids, expected)
    assert np.array_equal(mask.sum(1), expected.argmax(1) + 1)
    assert tokens.truncated == 2


def test_siglip_ids_are_open_clips(siglip):
    assert same_siglip(siglip, [*TITLES, "red dress </s> <pad> mug", "Red_Dress"])
    assert same_siglip(siglip, [])


@given(texts=ANY_TEXTS)
@example(["a" * 3, "İstanbul", "ǅ ß ẞ", "red _ & dress", "\x1c\x85 "])
def test_siglip_ids_are_open_clips_for_any_text(siglip, texts):
    assert same_siglip(siglip, texts)


def test_ends_are_dropped_where_open_clip_drops_them(tmp_path):
    folder, texts = save_tiny_siglip_tokenizer(tmp_path, pad_token="<pad>"), ["red mug", "red " * 4, "red " * 20]
    kept = clip_tokenizer(siglip_config(context_length=5), folder).tokenize(texts)
    dropped = clip_tokenizer(siglip_config(context_length=5, strip_sep_token=True), folder).tokenize(texts)
    red, mug = kept.ids[:2]
    assert kept.ids.reshape(3, 5).tolist() == [[red, mug, 1, 0, 0], [red, red, red, red, 1], [red, red, red, red, 1]]
    assert dropped.ids.reshape(3, 5)[[0, 2]].tolist() == [[red, mug, 0, 0, 0], [red, red, red, red, 0]]
    assert kept.truncated == dropped.truncated == 1, "the second fits"


def test_a_tokenizer_is_saved_as_it_was_loaded(tmp_path, siglip_folder):
    used = clip_tokenizer(siglip_config(context_length=5), siglip_folder)
    used.tokenize(TEXTS)
    used.source.save_pretrained(str(tmp_path / "used"))
    AutoTokenizer.from_pretrained(str(siglip_folder)).save_pretrained(str(tmp_path / "unused"))
    assert (tmp_path / "used" / "tokenizer.json").is_file()
    for path in (tmp_path / "used").iterdir():
        assert path.read_bytes() == (tmp_path / "unused" / path.name).read_bytes(), path.name


def test_tokenizers_that_do_more_are_left_to_open_clip(siglip_folder, monkeypatch):
    masked = clip_tokenizer({"tokenizer_kwargs": {"reduction_mask": "simple"}, "context_length": 5})
    assert isinstance(masked, OpenClipTokenizer)
    assert masked.source is None
    assert masked.tokenize(["red dress", "red " * 9]).ids.reshape(2, 5)[:, 0].tolist() == [49406, 49406]
    assert isinstance(
        clip_tokenizer({"tokenizer_kwargs": {"additional_special_tokens": ["<mask>"]}}), OpenClipTokenizer
    )
    clips = clip_tokenizer({**siglip_config(), "tokenizer_mode": "clips"}, siglip_folder)
    assert isinstance(clips, OpenClipTokenizer)
    plain = HFTokenizer.__call__
    monkeypatch.setattr(
        HFTokenizer, "__call__", lambda self, texts: plain(self, [text.replace("red", "blue") for text in texts])
    )
    other = clip_tokenizer(siglip_config(context_length=5), siglip_folder)
    assert isinstance(other, OpenClipTokenizer)
    tokens = other.tokenize(["red mug", "blue mug", "red " * 9])
    assert np.array_equal(*tokens.ids.reshape(3, 5)[:2])
    assert tokens.pad_id == 1
    assert len(other.tokenize([])) == 0


def test_folders_without_what_is_needed(tmp_path, siglip_folder):
    with pytest.raises(CheckpointError, match="needs a tokenizer of its own"):
        clip_tokenizer(siglip_config())
    with pytest.raises(CheckpointError, match=r"no tokenizer in .* that transformers can load"):
        clip_tokenizer(siglip_config(), tmp_path)
    plain = Tokenizer.from_file(str(siglip_folder / "tokenizer.json"))
    plain.no_padding()
    with pytest.raises(CheckpointError, match="does not pad"):
        FastTokenizer(plain, max_tokens=None)


def test_a_text_without_end_is_cut_before_it_is_tokenized() -> None:
    """50 MB took 6.8 GB and 190 s. The tokens are those of its beginning, and it is counted."""
    tokenizer = FastTokenizer(tiny_tokenizer(), max_tokens=8)
    limit = CHARACTERS_PER_TOKEN * 8
    long = "mug blue " * limit
    started = time.perf_counter()
    found = tokenizer.tokenize([long * 2000, "mug", "mug " * 3])
    assert time.perf_counter() - started < 60
    assert found.truncated == 1
    assert found.ids[: found.offsets[1]].tolist() == tokenizer.tokenize([long[:limit]]).ids.tolist()
    assert tokenizer.tokenize(["x" * (limit + 1)]).truncated == 1
