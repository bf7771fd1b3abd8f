"""`pipelines.evaluate` over several systems: encoders, seeds, an index, photos as queries, an annotator."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import evaluate, train_encoder
from pipelines.config.command_line import run_command
from tests.benchmarks.paper_tables import TABLES
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import arguments, product, run_job, write_catalog

PRODUCTS = 160
LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A catalog, a published index of it, saved encoders, queries with labels and purchases, and photos."""
    folder = tmp_path_factory.mktemp("shop")
    rows = [product(number) for number in range(PRODUCTS)]
    write_catalog(folder / "catalog", rows)
    run_job(folder)
    for name, model, seed in (("clip", "clip", 0), ("other", "clip", 1), ("bert", "bibert", 0)):
        save_tiny_encoder(folder / name, model=model, seed=seed)
    queries = [{"query_id": f"q{number}", "query": rows[number]["title"]} for number in range(12)]
    labels = [
        {"query_id": f"q{number}", "product_id": f"p{(number + step) % PRODUCTS:05d}", "label": label}
        for number in range(12)
        for step, label in enumerate("ESSCI")
    ]
    labels.append({"query_id": "q0", "product_id": "gone", "label": "E"})
    bought = [{"query_id": f"q{number}", "product_id": f"p{number:05d}"} for number in range(12)]
    pq.write_table(pa.Table.from_pylist(queries), folder / "queries.parquet")
    pq.write_table(pa.Table.from_pylist(labels), folder / "judgments.parquet")
    pq.write_table(pa.Table.from_pylist(bought), folder / "purchases.parquet")
    (folder / "photos").mkdir()
    photos = []
    for number in range(0, 30, 3):
        (folder / "photos" / f"{number}.png").write_bytes(rows[number]["image"]["bytes"])
        photos.append({"image": f"{number}.png", "product_id": f"p{number:05d}", "query": rows[number]["title"]})
    (folder / "photos.jsonl").write_text("".join(json.dumps(photo) + "\n" for photo in photos))
    return folder


def evaluated(shop: Path, out: Path, *more: str, photos: bool = False) -> tuple[int, dict[tuple[str, str], dict]]:
    """Runs the command; gives its exit code and the rows of the CSV by system and metric."""
    files = ["--queries", f"{shop}/queries.parquet", "--judgments", f"{shop}/judgments.parquet"]
    files += ["--purchases", f"{shop}/purchases.parquet"]
    if photos:
        fields = {"query_id_field": "image", "query_image_field": "image", "query_image_root": f"{shop}/photos"}
        files = ["--queries", f"{shop}/photos.jsonl", "--purchases", f"{shop}/photos.jsonl"]
        files += [text for key, value in fields.items() for text in (f"--evaluation.{key}", value)]
    command = [*arguments(shop), *files, "--out", str(out), "--evaluation.k", "10", "--evaluation.resamples", "50"]
    code = run_command(evaluate.main, [*command, "--fetch.allowed_hosts", "[]", *more])
    if code:
        return code, {}
    with (out / "evaluation.csv").open() as file:
        return code, {(row["system"], row["metric"]): row for row in csv.DictReader(file)}


def test_encoders_and_an_index_side_by_side(shop, tmp_path, capsys):
    code, rows = evaluated(
        shop, tmp_path / "out", "--systems", f"exact={shop}/encoder", f"live={shop}/index", f"clip={shop}/clip",
        f"seeds={shop}/clip,{shop}/other", "--baseline", "exact", "--unlabelled", "I",
    )  # fmt: skip
    assert code == 0
    told = capsys.readouterr().out
    for words in ("overlap (sd)", "results without a label: counted as Irrelevant", "recall: of 12 purchases"):
        assert words in told
    assert "judged products that the catalog does not hold: 1" in told
    assert "evaluation.png" in told
    # The same vectors, searched through lists and codes: most of the exact results, not all of them.
    assert 0.3 < float(rows["live", "of exact@10"]["mean"]) <= 1.0
    # Both look at ten results, though AP@100 asks for a hundred; products of equal scores may stand for each other.
    of_exact, shared = (float(rows["live", name]["mean"]) for name in ("of exact@10", "overlap@10"))
    assert shared / 10 - 0.05 <= of_exact <= shared / 10 + 0.3
    assert float(rows["live", "overlap@10"]["mean"]) > 3.0
    assert ("exact", "of exact@10") not in rows
    # The index's own vectors, searched exactly: what the encoder finds, recall and labels alike, up to rounding.
    for metric in ("R@10", "P(Exact)@10"):
        of_vectors, of_encoder = (float(rows[name, metric]["mean"]) for name in ("live, exact", "exact"))
        assert of_vectors == pytest.approx(of_encoder, abs=0.05)
    assert ("live, exact", "of exact@10") not in rows
    assert 0.0 < float(rows["live", "R@10"]["p_value"]) <= 1.0
    # A clip has one text tower for both sides, but products are seen by their picture here.
    for label in LABELS:
        assert ("clip", f"net P({label})@10") in rows
    one, two = map(float, rows["seeds", "R@10"]["seeds"].split())
    assert one == pytest.approx(float(rows["clip", "R@10"]["mean"]))
    assert float(rows["seeds", "R@10"]["mean"]) == pytest.approx((one + two) / 2, abs=1e-5)
    net, shared = float(rows["clip", "net results@10"]["mean"]), float(rows["clip", "overlap@10"]["mean"])
    assert net + shared == pytest.approx(10.0)
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "index version" in text and "nprobe" in text


def test_an_index_of_version_and_without_its_vectors(shop, tmp_path, capsys):
    version = (shop / "index" / "CURRENT").read_text().strip()
    shards = shop / "work" / "embeddings"
    shards.rename(shop / "work" / "away")
    try:
        code, rows = evaluated(shop, tmp_path / "out", "--systems", f"live={shop}/index@{version}")
    finally:
        (shop / "work" / "away").rename(shards)
    assert code == 0
    told = capsys.readouterr().out
    assert "its embedding shards are not there any more" in told, told
    assert ("live", "of exact@10") not in rows
    assert ("live", "R@10") in rows


def test_an_index_alone_needs_no_catalog(shop, tmp_path, capsys):
    alone = ["--catalog.uri", "/nowhere", "--systems", f"live={shop}/index"]
    code, rows = evaluated(shop, tmp_path / "out", *alone, "--baseline", "live, exact", "--by", "price")
    assert code == 0
    assert rows["live", "R@10"]["p_value"]
    assert ("live", "R@10 where price is 3.0") in rows
    assert evaluated(shop, tmp_path / "out", *alone, "--by", "prize")[0] == 2
    assert "--by prize: system 'live' has no such column" in capsys.readouterr().err


def test_recall_by_a_column_of_the_catalog(shop, tmp_path, capsys):
    systems = ["--systems", f"one={shop}/bert", f"live={shop}/index"]
    code, rows = evaluated(shop, tmp_path / "out", *systems, "--by", "price", "--evaluation.segments", "3")
    assert code == 0
    segments = {metric for _, metric in rows if " where price is " in metric}
    assert len(segments) == 3
    assert "recall@10 by price, %" in capsys.readouterr().out
    for metric in segments:
        assert rows["one", metric]["queries"] == "1"
    assert evaluated(shop, tmp_path / "out", *systems, "--by", "prize")[0] == 2
    assert "prize" in capsys.readouterr().err


def test_photos_find_the_product_that_they_show(shop, tmp_path):
    systems = [
        {"name": "photo", "encoder": {"uri": f"{shop}/clip"}, "queries": "picture", "products": "picture"},
        {"name": "words", "encoder": {"uri": f"{shop}/clip"}, "queries": "text", "products": "text"},
        {"name": "both", "encoder": {"uri": f"{shop}/clip", "image_weight": 1.0}},
    ]
    code, rows = evaluated(
        shop, tmp_path / "out", "--systems", json.dumps(systems), "--measures", "R@1", "R@5", photos=True
    )
    assert code == 0
    # The photo is the product's own picture, and the words are its title: nothing is nearer.
    assert float(rows["photo", "R@1"]["mean"]) == 1.0
    assert float(rows["words", "R@1"]["mean"]) == 1.0
    # All weight on the picture: the words count for nothing.
    assert float(rows["both", "R@1"]["mean"]) == float(rows["photo", "R@1"]["mean"])
    assert ("photo", "R@5") in rows


def test_photos_that_cannot_be_read_are_counted(shop, tmp_path, capsys):
    (shop / "photos" / "3.png").rename(shop / "photos" / "hidden")
    try:
        system = json.dumps([{"name": "photo", "encoder": {"uri": f"{shop}/clip"}, "queries": "picture"}])
        code, rows = evaluated(shop, tmp_path / "out", "--systems", system, photos=True)
    finally:
        (shop / "photos" / "hidden").rename(shop / "photos" / "3.png")
    assert code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "photo: 1 query pictures could not be used; the first:" in told
    assert "1 queries have nothing that it reads, and found nothing" in told
    assert float(rows["photo", "R@10"]["mean"]) == pytest.approx(0.9)


def test_photos_need_an_encoder_that_reads_them(shop, tmp_path, capsys):
    photo_only = ["--evaluation.query_field", "null"]
    code, _ = evaluated(shop, tmp_path / "out", "--systems", f"bert={shop}/bert", *photo_only, photos=True)
    assert code == 2
    assert "no query has what it is asked with" in capsys.readouterr().err
    for key in ("queries", "products"):
        system = json.dumps([{"name": "bert", "encoder": {"uri": f"{shop}/bert"}, key: "picture"}])
        assert evaluated(shop, tmp_path / "out", "--systems", system, photos=True)[0] == 2
        assert f"{key} is 'picture'" in capsys.readouterr().err


ANNOTATOR = """
def annotate(pairs):
    with open({log!r}, "a") as file:
        file.write(f"{{len(pairs)}}\\n")
    return ["E" if query.text == product["title"] else "I" for query, product in pairs]

def short(pairs):
    return ["E"]
"""


def test_an_annotator_labels_what_no_file_labels(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "asked"
    (tmp_path / "relevance_for_this_test.py").write_text(ANNOTATOR.format(log=str(log)))
    options = ["--systems", f"clip={shop}/clip", f"bert={shop}/bert", "--catalog.display_fields", "[title]"]
    options += ["--evaluation.annotations", str(tmp_path / "labels.parquet")]
    annotated = [*options, "--evaluation.annotator", "relevance_for_this_test:annotate"]
    code, rows = evaluated(shop, tmp_path / "out", *annotated)
    assert code == 0
    asked = sum(map(int, log.read_text().split()))
    assert f"{asked:,} pairs labelled now" in " ".join(capsys.readouterr().out.split())
    shares = [float(rows["clip", f"P({label})@10"]["mean"]) for label in LABELS]
    assert sum(shares) == pytest.approx(1.0, abs=1e-4)
    # Again: everything is known, and the figures are the same.
    code, again = evaluated(shop, tmp_path / "out", *annotated)
    assert (code, again) == (0, rows)
    assert sum(map(int, log.read_text().split())) == asked
    wrong = ["--systems", f"clip={shop}/clip", "--evaluation.annotations", str(tmp_path / "other.parquet")]
    wrong += ["--evaluation.annotator", "relevance_for_this_test:short"]
    assert evaluated(shop, tmp_path / "out", *wrong)[0] == 1
    assert "expected 64 labels for a batch of 64 pairs, found 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unlabelled", "Irelevant"], "--unlabelled Irelevant: expected leave-out or a label such as"),
        (["--unlabelled", "0"], "--unlabelled 0: expected leave-out"),
        (["--evaluation.grades", "{Exactly: 3}"], "evaluation.grades: 'Exactly' is no label"),
    ],
)
def test_labels_that_nothing_has_are_refused_before_any_encoding(shop, tmp_path, capsys, options, message):
    system = ["--systems", f"clip={shop}/clip", "--catalog.uri", f"{shop}/catalog"]
    assert evaluated(shop, tmp_path / "out", *system, *options)[0] == 2
    assert message in capsys.readouterr().err


def test_an_annotator_is_enough(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relevance_alone.py").write_text("def annotate(pairs):\n    return ['E' for _ in pairs]\n")
    command = [*arguments(shop), "--queries", f"{shop}/queries.parquet", "--systems", f"clip={shop}/clip"]
    command += ["--evaluation.annotator", "relevance_alone:annotate", "--work.uri", str(tmp_path)]
    command += ["--evaluation.k", "5"]
    assert run_command(evaluate.main, command) == 0
    assert "60 labelled pairs" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "annotations.parquet").num_rows == 60


def test_systems_may_stand_in_the_file(shop, tmp_path, capsys):
    config = tmp_path / "compare.yaml"
    config.write_text(
        f"""
catalog: {{uri: {shop}/catalog, image_field: image}}
work: {{uri: {tmp_path}/work}}
evaluation:
  queries: {shop}/queries.parquet
  judgments: {shop}/judgments.parquet
  grades: {{E: 3, S: 2, C: 1}}
  k: 5
systems:
  - name: bert
    encoder: {{uri: {shop}/bert}}
  - name: fused
    encoder: {{uri: {shop}/encoder}}
  - name: fused, text only
    encoder: {{uri: {shop}/encoder}}
    products: text
baseline: bert
"""
    )
    assert run_command(evaluate.main, ["--config", str(config)]) == 0
    told = capsys.readouterr().out
    assert "fused, text only" in told
    assert "minus bert" in told
    assert run_command(evaluate.main, ["--config", str(config), "--print-config"]) == 0
    assert "two_labels: refuse" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fashion_nocolour", "fashion_title", "grocery"])
def test_the_papers_configs_are_whole(name, capsys):
    assert run_command(evaluate.main, ["--config", f"papers/{name}", "--print-config"]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    systems = [system["name"] for system in job["systems"]]
    assert job["baseline"] == systems[0]
    # Table 2 has eleven rows; below them stand two with other negatives and two with MiniLM.
    assert len(systems) == (6 if name == "grocery" else 15)
    named = set()
    for encoders in (system["encoders"] for system in job["systems"] if system["encoders"]):
        assert [encoder["uri"].rpartition("-")[2] for encoder in encoders] == ["seed0", "seed1"]
        named.add(encoders[0]["uri"].rpartition("-")[0])
    assert named == {f"trained/{system.name}" for system in TABLES[name]()}, "those that the benchmark trains"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_papers_encoders_can_be_asked_for(name, capsys):
    for system in TABLES[name]():
        settings = [part for key, value in system.settings.items() for part in (f"--{key}", value)]
        command = ["--config", f"papers/{system.config}", *settings, "--out", "out", "--print-config"]
        assert run_command(train_encoder.main, command) == 0, capsys.readouterr().err
