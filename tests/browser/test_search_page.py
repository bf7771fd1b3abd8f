"""People search, compare and judge in a real browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
from contextlib import suppress

import pytest
from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from pipelines import evaluate
from pipelines.config.command_line import run_command
from tests.browser.conftest import HOSTILE, SLOW, Shop, serious_faults, serving

expect.set_options(timeout=SLOW)
DARK = {"color_scheme": "dark"}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def ids(page: Page, of: str = "#answers .card") -> list[str]:
    return page.eval_on_selector_all(of, "cards => cards.map(card => card.dataset.id)")


def answer(page: Page, address: str, **query) -> dict:
    """What the API answers to the same query."""
    return page.request.post(f"{address}/search", data={"k": 24} | query, timeout=SLOW).json()


def found_ids(page: Page, address: str, **query) -> list[str]:
    return [hit["product_id"] for hit in answer(page, address, **query)["hits"]]


def shows(page: Page, wanted: list[str], of: str = "#answers .card") -> None:
    """Waits until these products are shown, in order."""
    same = "([of, wanted]) => [...document.querySelectorAll(of)].map(card => card.dataset.id).join() === wanted.join()"
    with suppress(PlaywrightTimeoutError):
        page.wait_for_function(same, arg=[of, wanted])
    assert ids(page, of) == wanted


def search(page: Page, words: str) -> None:
    page.get_by_role("searchbox").fill(words)
    page.get_by_role("button", name="Search", exact=True).last.click()
    said(page)


def said(page: Page) -> str:
    """What the page says once it has its answers."""
    expect(page.locator("#said")).to_contain_text(re.compile(r" ms \(|Nothing|not answer|expected|version|no product"))
    return page.locator("#said").inner_text()


def test_words_find_products_with_pictures_and_an_address_to_pass_on(page, address, shop):
    page.goto(address)
    expect(page.locator("#served")).to_contain_text(shop.nights[1].version)
    expect(page.locator("#served")).to_contain_text(f"{len(shop.rows)} products")
    search(page, "striped mug")
    wanted = answer(page, address, text="striped mug")
    assert ids(page) == [hit["product_id"] for hit in wanted["hits"]]
    card, hit = page.locator(".card").first, wanted["hits"][0]
    for text in (hit["columns"]["title"], hit["product_id"], f"{hit['score']:.3f}"):
        expect(card).to_contain_text(text)
    page.wait_for_function("() => document.querySelector('.card img')?.naturalWidth > 0")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".card")).to_have_count(48)
    assert ids(page)[24:] == found_ids(page, address, text="striped mug", offset=24)

    page.get_by_role("button", name=f"Why {hit['columns']['title']}?").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"{hit['score']:.4f}")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()

    passed_on = page.url
    page.goto("about:blank")
    page.goto(passed_on)
    shows(page, [each["product_id"] for each in wanted["hits"]])
    assert page.get_by_role("searchbox").input_value() == "striped mug"


def test_a_picture_alone_and_with_words(page, address, shop):
    page.goto(address)
    expect(page.locator("#drop")).to_be_visible()
    page.locator("#picture").set_input_files(shop.picture(30))
    said(page)
    assert ids(page)[0] == shop.rows[30]["product_id"]
    assert page.locator("#weight-line").is_hidden()
    by_picture = ids(page)
    search(page, "green bottle")
    slider = page.get_by_role("slider")
    by_words = found_ids(page, address, text="green bottle")
    for key, wanted in (("Home", by_words), ("End", by_picture)):
        slider.press(key)
        shows(page, wanted)
    page.get_by_role("button", name="Search without the picture").click()
    shows(page, by_words)


def test_a_picture_is_dropped(page, address, shop):
    page.goto(address)
    expect(page.locator("#drop")).to_be_visible()
    dropped = page.evaluate_handle(
        """bytes => { const all = new DataTransfer();
        all.items.add(new File([new Uint8Array(bytes)], 'a.jpg', {type: 'image/jpeg'})); return all; }""",
        list(shop.rows[31]["image"]["bytes"]),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    expect(page.locator(".card").first).to_have_attribute("data-id", shop.rows[31]["product_id"])


def test_filters_count_and_narrow(page, address, shop):
    kinds = [row["kind"] for row in shop.rows]
    page.goto(address)
    search(page, "for the kitchen")
    mug = page.locator("#facets label", has=page.get_by_text("mug", exact=True))
    expect(mug).to_contain_text(str(kinds.count("mug")))
    mug.get_by_role("checkbox").check()
    expect(page.locator("#filter-count")).to_have_text("(1)")
    expect(page.locator(".card")).to_have_count(min(24, kinds.count("mug")))
    assert ids(page) == found_ids(page, address, text="for the kitchen", filter="kind = 'mug'")
    page.get_by_label("price at most").fill("12")
    page.get_by_label("price at most").press("Enter")
    cheap = sum(row["kind"] == "mug" and (row["price"] or 99) <= 12 for row in shop.rows)
    expect(page.locator(".card")).to_have_count(cheap)
    page.reload()
    expect(page.locator(".card")).to_have_count(cheap)
    page.get_by_label("price at least").fill("11000")
    page.get_by_label("price at least").press("Enter")
    expect(page.locator("#said")).to_have_text("Nothing passes these filters. Take one away.")
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator(".card")).to_have_count(24)


def test_variants_fold_into_one_answer(page, address, shop):
    page.goto(f"{address}/?q=mug")
    said(page)
    page.get_by_label("one answer a family").check()
    page.locator(".facts", has_text="best of").first.wait_for()
    shown = page.eval_on_selector_all(".card", "cards => cards.map(card => card.innerText)")
    wanted = answer(page, address, text="mug", group=True)["hits"]
    families = [hit["columns"]["family"] for hit in wanted]
    assert ids(page) == [hit["product_id"] for hit in wanted] and len(set(families)) == len(families)
    assert all(
        hit["members"] == 1 or f"best of {hit['members']}" in text for hit, text in zip(wanted, shown, strict=True)
    )


def test_more_like_this_and_back_again(page, address, shop):
    page.goto(f"{address}/?q=teapot")
    said(page)
    before = ids(page)
    page.get_by_role("button", name="More like").nth(2).click()
    expect(page.locator("#like-id")).to_have_text(before[2])
    shows(page, found_ids(page, address, product_id=before[2]))
    assert before[2] not in ids(page)
    page.go_back()
    shows(page, before)
    assert page.get_by_role("searchbox").input_value() == "teapot" and page.locator("#like").is_hidden()


def compare(page: Page, address: str, queries: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Compare").first.click()
    page.locator("#left-version option").first.wait_for(state="attached")
    page.get_by_label("Queries, one a line").fill(queries)
    page.get_by_role("button", name="Compare").last.click()
    expect(page.locator("#compare-said")).to_contain_text("on average")


def test_two_versions_side_by_side(page, address, shop):
    queries = ["striped mug", "teapot for tea", "wide bottle"]
    compare(page, address, "\n".join(queries))
    assert page.locator("#left-version").input_value() == shop.nights[0].version
    assert page.locator("#right-version").input_value() == shop.nights[1].version
    found = {}
    for text in queries:
        old, new = (found_ids(page, address, text=text, k=10, version=each.version) for each in shop.nights)
        found[text] = old, new, len(set(old) & set(new))
    rows = [row.split("\t") for row in page.locator("#overlaps tbody tr").all_inner_texts()]
    assert [int(row[1]) for row in rows] == sorted(both for _, _, both in found.values())
    assert {row[0]: int(row[1]) for row in rows} == {text: both for text, (_, _, both) in found.items()}
    page.get_by_role("button", name=queries[1]).click()
    old, new, _ = found[queries[1]]
    assert (ids(page, "#left-answers li"), ids(page, "#right-answers li")) == (old, new)
    lost = page.eval_on_selector_all("#left-answers li:has(.lost)", "lines => lines.map(line => line.dataset.id)")
    came = page.eval_on_selector_all("#right-answers li:has(.new)", "lines => lines.map(line => line.dataset.id)")
    assert (lost, came) == ([each for each in old if each not in new], [each for each in new if each not in old])


def test_who_is_faster_than_the_server_gets_what_was_asked_for(page, address, shop):
    page.add_init_script(
        "const real = window.fetch; let asked = 0;"
        "const late = () => new Promise(done => setTimeout(done, 900 - 200 * Math.min(asked++, 4)));"
        "window.fetch = async (...args) => { await late(); return real(...args); };"
    )
    page.goto(address)
    search(page, "for the kitchen")
    assert ids(page) == found_ids(page, address, text="for the kitchen")
    page.get_by_role("button", name="Compare").first.click()
    page.locator("#right-index").select_option("other")
    page.get_by_label("Queries, one a line").fill("floral dress")
    page.get_by_role("button", name="Compare").last.click()
    expect(page.locator("#right-title")).to_contain_text("other")
    assert ids(page, "#right-answers li") == found_ids(page, address, text="floral dress", k=10, index="other")


def test_two_encoders_side_by_side(page, address, shop):
    page.goto(address)
    page.get_by_role("button", name="Compare").first.click()
    page.locator("#right-index").select_option("other")
    page.wait_for_function("() => document.getElementById('right-version').options.length === 1")
    page.get_by_label("Queries, one a line").fill("floral dress")
    page.get_by_role("button", name="Compare").last.click()
    expect(page.locator("#right-title")).to_contain_text("other")
    assert ids(page, "#right-answers li") == found_ids(page, address, text="floral dress", k=10, index="other")


def test_judging_by_keys_writes_a_file_that_evaluate_reads(page, address, shop, tmp_path, capsys):
    compare(page, address, 'mug, "striped"\nteapot')
    page.get_by_role("button", name='mug, "striped"').click()
    lines = page.locator("#right-answers li")
    judged = ids(page, "#right-answers li")[:4]
    for number, key in enumerate("1234"):
        lines.nth(number).focus()
        page.keyboard.press(key)
        expect(lines.nth(number).locator(".grade")).to_have_text("ESCI"[number])
    expect(page.get_by_role("button", name="Save judgments")).to_contain_text("(4)")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save judgments").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    with open(file, encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["query"], row["product_id"], row["label"]) for row in rows] == [
        ('mug, "striped"', name, label) for name, label in zip(judged, "ESCI", strict=True)
    ]
    given = ["--judgments", str(file), "--systems", f"live={shop.index}", "--evaluation.k", "10", "--catalog.uri"]
    given += [str(shop.folder / "catalog"), "--evaluation.resamples", "50", "--out", str(tmp_path / "out")]
    assert run_command(evaluate.main, given) == 0
    assert "Exact" in capsys.readouterr().out
    figures = (tmp_path / "out" / "evaluation.csv").read_text()
    assert re.search(r"live,.*R@10.*,1\.0|live,R@10,1", figures), figures


def test_without_a_mouse(page, address, shop):
    page.goto(address)
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type("glass jar")
    page.keyboard.press("Enter")
    said(page)
    before = ids(page)
    for _ in range(300):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')?.startsWith('More like')"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "what has the focus is not to be seen"
    page.keyboard.press("Enter")
    expect(page.locator("#like-id")).to_have_text(before[0])
    page.get_by_role("button", name="Compare").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Queries, one a line")).to_be_visible()


@pytest.mark.parametrize("page", [PHONE], indirect=True, ids=["phone"])
def test_on_a_phone(page, address, shop):
    page.goto(f"{address}/?q=mug")
    said(page)
    assert not page.locator("#filters").evaluate("filters => filters.open")
    tops = page.eval_on_selector_all(".card", "cards => cards.slice(0, 3).map(card => card.offsetTop)")
    assert tops[0] == tops[1] < tops[2], "two in a row"
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 390
    small = page.eval_on_selector_all(
        "button, input, summary, select",
        "all => all.filter(e => e.offsetHeight && e.offsetHeight < 24).map(e => e.outerHTML)",
    )
    assert not [each for each in small if not re.search("checkbox|range|file", each)], small
    compare(page, address, "mug")
    assert page.evaluate(wide) == 390


def test_texts_of_the_catalog_and_of_the_address_are_texts(page, address, shop):
    page.goto(f"{address}/?like={shop.rows[0]['product_id']}")
    said(page)
    page.goto(f"{address}/?q=mug&in.kind=" + HOSTILE.replace(" ", "%20").replace("&", "%26"))
    said(page)
    card = page.locator(".card").first
    expect(card).to_contain_text(HOSTILE)
    page.get_by_role("button", name="Why").first.click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    page.keyboard.press("Escape")
    page.goto(f"{address}/?q=" + HOSTILE.replace(" ", "%20").replace("&", "%26"))
    said(page)
    page.goto(f"{address}/?like=" + HOSTILE.replace(" ", "%20").replace("&", "%26"))
    assert HOSTILE[:20] in said(page)
    compare(page, address, HOSTILE)
    expect(page.locator("#left-title")).to_contain_text(HOSTILE)
    assert page.locator("img[src=x]").count() == 0


def test_a_token_is_asked_for_until_it_is_right(page, shop):
    with serving(indexes={"main": shop.index}, token="open sesame") as url:
        page.goto(f"{url}/?q=mug")
        page.get_by_label("Token").fill("wrong")
        page.get_by_label("Token").press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server refused that token.")
        page.get_by_label("Token").fill("open sesame")
        page.get_by_label("Token").press("Enter")
        expect(page.locator(".card")).to_have_count(24)
        page.wait_for_function("() => document.querySelector('.card img')?.naturalWidth > 0")


def test_a_version_that_vanishes_and_a_server_that_dies(page, shop, tmp_path):
    shutil.copytree(shop.folder / "index", tmp_path / "index")
    with serving(indexes={"main": str(tmp_path / "index")}) as url:
        page.goto(f"{url}/?q=mug")
        said(page)
        page.get_by_role("button", name="Compare").first.click()
        page.locator("#left-version option").nth(1).wait_for(state="attached")
        gone = shop.nights[0].version
        shutil.rmtree(tmp_path / "index" / "versions" / gone)
        page.get_by_role("button", name="Compare").last.click()
        expect(page.locator("#compare-said")).to_contain_text(f"no version '{gone}'")
        page.get_by_role("button", name="Search").first.click()
        search(page, "dress")
        assert len(ids(page)) == 24
    search(page, "teapot")
    expect(page.locator("#said")).to_have_text(
        "The server does not answer. Is it still running? Try again in a moment."
    )
    assert ids(page) == []
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_label("Queries, one a line").fill("teapot")
    page.get_by_role("button", name="Compare").last.click()
    expect(page.locator("#compare-said")).to_contain_text("The server does not answer")


@pytest.mark.parametrize("page", [{}, DARK], indirect=True, ids=["light", "dark"])
def test_nothing_keeps_people_out(page, address, shop):
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    page.goto(f"{address}/?q=mug&group=1&like=")
    said(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{ground[4:-1]}]")) < 300) == dark
    assert serious_faults(page) == []
    page.get_by_role("button", name="Why").first.click()
    assert serious_faults(page) == []
    page.keyboard.press("Escape")
    compare(page, address, "striped mug\nteapot")
    assert serious_faults(page) == []
    for result in shop.nights:
        page.goto(f"file://{result.uri}/report.html")
        assert serious_faults(page) == []


@pytest.mark.parametrize("page", [PHONE], indirect=True, ids=["phone"])
def test_reports_fit_a_phone(page, shop: Shop):
    for result in shop.nights:
        page.goto(f"file://{result.uri}/report.html")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert serious_faults(page) == []
