"""Reports of nights with a planted fault each, and of a good night, under names that do not tell which is which: for a
person who is to find the faults from the reports alone.

    python -m tests.reliability.planted_nights --out FOLDER --answers FILE [--only 'prices null' ...] [--seed 5]

Writes FOLDER/night_1 and so on, each with what a night leaves for people (`report.html`, `report.md`), and FILE with
what was planted in which. The shop is the drawn one, its nights are the job's own: each is compared with the same good
night before it. Without `--only`: half of the pictures swapped, a category gone, prices null, texts in German, a stale
encoder, and a good night. Another `--seed` is another order, and another choice of products.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from encoders.checkpoint import local_folder
from pipelines.config.command_line import load_job_config
from pipelines.demo_catalog import draw_named_catalog
from pipelines.indexing import job
from pipelines.indexing.catalog_source import CatalogSource
from tests.reliability.faults import FAULTS, Catalog

PRODUCTS, LATER, BEFORE = 720, 20, 3
"""Products of the first night, those that come in each later one, and good nights before the planted ones."""
ENCODER = "package://encoders/pretrained/demo"
FORGOTTEN = 0.35
"""How far the weights of the stale encoder are from those in use, as a share of their standard deviation."""
GOOD, STALE, GERMAN = "good night", "a stale encoder", "texts in German"
PLANTED = ("half of the pictures swapped", "one category gone", "prices null", GERMAN, STALE, GOOD)
_GERMAN = dict(
    pair.split("=")
    for pair in """
mug=Becher, cup=Tasse, coffee=Kaffee, dining room=Esszimmer, dining=Ess, teapot=Teekanne, tea pot=Teekanne,
bottle=Flasche, water=Wasser, drinking=Trink, vase=Vase, flower=Blumen, lamp=Lampe, table=Tisch, chair=Stuhl,
seat=Sitz, sofa=Sofa, couch=Couch, cushion=Kissen, pillow=Kopfkissen, shirt=Hemd, dress=Kleid, gown=Abendkleid,
shoe=Schuh, hat=Hut, sock=Socke, socks=Socken, backpack=Rucksack, handbag=Handtasche, bag=Tasche,
umbrella=Regenschirm, headphones=Kopfhörer, watch=Uhr, wristwatch=Armbanduhr, guitar=Gitarre, red=rot,
crimson=karmesinrot, scarlet=scharlachrot, yellow=gelb, green=grün, blue=blau, purple=lila, violet=violett, pink=rosa,
brown=braun, black=schwarz, white=weiß, plain=einfarbig, striped=gestreift, stripes=Streifen, dotted=gepunktet,
dots=Punkte, checked=kariert, floral=geblümt, flowers=Blumen, tall=hoch, wide=breit, round=rund, slim=schmal,
long=lang, short=kurz, square=eckig, ceramic=Keramik, steel=Stahl, glass=Glas, leather=Leder, cotton=Baumwolle,
wool=Wolle, linen=Leinen, silk=Seide, velvet=Samt, paper=Papier, metal=Metall, plastic=Kunststoff, canvas=Segeltuch,
made=gemacht, for=für, with=mit, the=die, of=aus, and=und, to=zu, be=sein, years=Jahre, comes=kommt, colour=Farbe,
shape=Form, is=ist, a=ein, by=von, office=Büro, summer=Sommer, winter=Winter, travel=Reise, school=Schule,
hiking=Wandern, running=Laufen, kitchen=Küche, living room=Wohnzimmer, bedroom=Schlafzimmer, wedding=Hochzeit,
gift=Geschenk, ideal=ideal, great=großartig, good=gut, quality=Qualität, best=beste, free returns=kostenlose Rückgabe,
two=zwei, days=Tagen, ships=Versand, within=in, our=unser, from=aus, workshop=Werkstatt, design=Muster, small=klein,
every=jeden, day=Tag, studio=Studio, room=Zimmer, garden=Garten, in=in, own=eigenen, designed=entworfen, all=alles,
that=was, you=Sie, need=brauchen, nothing=nichts, else=sonst, packed=verpackt, stage=Bühne, look=ansehen, at=an,
old=alter, favourite=Liebling, new=neu, season=Saison, this=dieser, limited stock=begrenzter Vorrat,
warranty=Garantie, without=ohne, request=Wunsch, on=auf
""".strip()
    .replace("\n", " ")
    .split(", ")
)
"""Words of the drawn shop."""
_WORDS = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _GERMAN), key=len, reverse=True)) + r")\b", re.IGNORECASE)

Rows = list[dict[str, Any]]


def in_german(text: str) -> str:
    """A text of the drawn shop as its German feed might have it, word by word."""
    found = _WORDS.sub(lambda word: _GERMAN[word[0].lower()], text)
    return found[:1].upper() + found[1:]


def next_night(rows: Rows, later: Rows, random: Random) -> Rows:
    """The rows of a good night: a few products go, a few come, a few get another price or description."""
    kept = [dict(row) for row in rows if random.random() > 0.015]
    for row in kept:
        if random.random() < 0.03:
            row["price"] = round(row["price"] * random.uniform(0.8, 1.1), 2)
        if random.random() < 0.01:
            row["description"] += " Now in a new box."
    return kept + later


def planted(name: str, rows: Rows, random: Random) -> Rows:
    """The rows with a fault of `tests.reliability.faults` in them, or as they are."""
    if name in (GOOD, STALE):
        return rows
    if name == GERMAN:
        return [row | {key: in_german(row[key]) for key in ("title", "description")} for row in rows]
    return FAULTS[name](Catalog(rows=rows), random).rows


def stale_encoder(folder: Path, seed: int) -> str:
    """The demo's encoder as it was some time ago: its weights are near those in use, and others."""
    shutil.copytree(local_folder(ENCODER), folder)
    weights = load_file(folder / "weights.safetensors")
    chance = torch.Generator().manual_seed(seed)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=chance).to(tensor.dtype)
            weights[name] = tensor + FORGOTTEN * tensor.std() * noise
    save_file(weights, folder / "weights.safetensors")
    return str(folder)


def run_night(folder: Path, rows: Rows, schema: pa.Schema, *options: str) -> Path:
    """One night of the shop; the folder of its version."""
    (folder / "catalog").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "catalog" / "part.parquet")
    uris = [f"--{key}.uri={folder / key}" for key in ("catalog", "work", "index")]
    of_demo = [
        "--config",
        "demo",
        "--catalog.filter_fields=[brand]",
        "--index.factory=Flat",
        "--index.serving_shards=1",
    ]
    command = load_job_config([*of_demo, *uris, *options])
    return Path(job.run_job(CatalogSource(command.config), command.pipeline_options)[0].uri)


def write_nights(out: Path, names: Sequence[str], seed: int, said: Callable[[str], object] = print) -> list[str]:
    """Writes the reports of nights below a folder, shuffled; what is in each, a line each."""
    random = Random(seed)
    names = random.sample(names, len(names))
    answers = []
    with tempfile.TemporaryDirectory(prefix="shop-") as name:
        shop = Path(name)
        drawn = Path(draw_named_catalog(f"demo://{PRODUCTS + LATER * (BEFORE + 1)}", str(shop / "drawn")))
        table = pa.concat_tables([pq.read_table(path) for path in sorted(drawn.glob("*.parquet"))])
        rows = table.to_pylist()
        later = [rows[PRODUCTS + LATER * night :][:LATER] for night in range(BEFORE + 1)]
        stale = stale_encoder(shop / "encoder", seed)
        before = rows[:PRODUCTS]
        run_night(shop, before, table.schema, f"--encoder.uri={stale}")
        # What changes every night, and what is usual, is known from good nights.
        for came in later[:BEFORE]:
            before = next_night(before, came, random)
            run_night(shop, before, table.schema)
        good = next_night(before, later[BEFORE], random)
        for number, planted_fault in enumerate(names, start=1):
            uri = stale if planted_fault == STALE else ENCODER
            own = planted(planted_fault, [dict(row) for row in good], Random(seed + number))
            # Waiting for approval, or held by a gate: the next one is compared with the same night.
            version = run_night(shop, own, table.schema, "--index.publish=ask", f"--encoder.uri={uri}")
            (out / f"night_{number}").mkdir(parents=True, exist_ok=True)
            for report in ("report.html", "report.md"):
                shutil.copyfile(version / report, out / f"night_{number}" / report)
            answers.append(f"night_{number}: {planted_fault}")
            said(f"night {number} of {len(names)} is written")
    return answers


def main() -> None:
    """Writes the nights, and what is in them."""
    parser = argparse.ArgumentParser(description="Reports of nights with planted faults.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=PLANTED, choices=[GOOD, STALE, GERMAN, *FAULTS], metavar="FAULT")
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    answers = write_nights(given.out, given.only, given.seed)
    given.answers.write_text("".join(f"{line}\n" for line in answers))


if __name__ == "__main__":
    main()
