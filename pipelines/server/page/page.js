// The search page: no library, no build step. The state of a search stands in the address, so that it can be passed on.
const $ = (id) => document.getElementById(id);
const PAGE = 24, COMPARED = 10;
const GRADES = { 1: ["E", "exact"], 2: ["S", "substitute"], 3: ["C", "complement"], 4: ["I", "irrelevant"] };
const state = { indexes: [], facets: [], picture: null, like: null, chosen: new Map(), ranges: new Map(), offset: 0, asked: 0, loaded: null, filling: {} };
const judgments = new Map(JSON.parse(localStorage.getItem("shelfmark-judgments") || "[]"));
let token = sessionStorage.getItem("shelfmark-token") || "";

async function call(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  } catch {
    throw new Error("The server does not answer. Is it still running? Try again in a moment.");
  }
  if (answer.status === 401) {
    await askForToken();
    return call(path, body);
  }
  const found = await answer.json().catch(() => ({ error: { message: `The server answered ${answer.status}.` } }));
  if (!answer.ok) throw Object.assign(new Error(found.error?.message || `The server answered ${answer.status}.`), { code: found.error?.code });
  return found;
}

function askForToken() {
  return new Promise((resolve) => {
    const dialog = $("token-asked");
    $("token").value = "";
    $("token-said").textContent = token ? "The server refused that token." : "";
    if (!dialog.open) dialog.showModal();
    dialog.addEventListener("close", () => {
      token = $("token").value.trim();
      sessionStorage.setItem("shelfmark-token", token);
      resolve();
    }, { once: true });
  });
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const TITLES = ["title", "name", "product_title", "product_name", "prod_name"];
const titleOf = (hit) => { const name = TITLES.find((each) => typeof hit.columns[each] === "string" && hit.columns[each].trim()); return name ? hit.columns[name] : hit.product_id; };
const shown = (value) => Array.isArray(value) ? value.join(", ") : typeof value === "number" && !Number.isInteger(value) ? value.toFixed(2) : String(value);

function picture(hit, title) {
  const box = element("div", { class: "picture" });
  const initials = () => box.replaceChildren(element("span", { class: "initials", "aria-hidden": "true" }, title.trim().slice(0, 2).toUpperCase()));
  if (!hit.image) { initials(); return box; }
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", referrerpolicy: "no-referrer" });
  image.addEventListener("error", initials);
  box.append(image);
  if (hit.image.startsWith("/") && token) {
    fetch(hit.image, { headers: { Authorization: `Bearer ${token}` } }).then((found) => found.ok ? found.blob() : Promise.reject()).then((blob) => { image.src = URL.createObjectURL(blob); }, initials);
  } else image.src = hit.image;
  return box;
}

function factsOf(hit, ...without) {
  const facts = element("div", { class: "facts" });
  const rest = Object.entries(hit.columns).filter(([name, value]) => value !== null && value !== "" && !TITLES.includes(name) && !without.includes(name) && !/^(image|picture|photo)/.test(name) && String(value).length < 80).slice(0, 4);
  // A word says of itself what it is; a number does not.
  rest.forEach(([name, value], number) => facts.append(...(number ? [" · "] : []), ...(typeof value === "string" ? [] : [`${name.replaceAll("_", " ")} `]), element("b", { title: name }, shown(value))));
  return facts;
}

function card(hit) {
  const title = titleOf(hit);
  return element("li", { class: "card", "data-id": hit.product_id },
    picture(hit, title),
    element("div", { class: "body" },
      element("h3", {}, title), factsOf(hit),
      element("div", { class: "facts" }, `${hit.score.toFixed(3)} · ${hit.product_id}`),
      hit.members > 1 ? element("div", { class: "facts" }, `best of ${hit.members}`) : null,
      element("div", { class: "actions" },
        element("button", { type: "button", "aria-label": `More like ${title}`, onclick: () => moreLike(hit) }, "More like this"),
        element("button", { type: "button", "aria-label": `Why ${title}?`, onclick: () => why(hit) }, "Why this?"))));
}

function indexNow() { return state.indexes.find((each) => each.name === $("index").value) || state.indexes[0]; }

function filterText() {
  const quoted = (value) => `'${value.replaceAll("'", "''")}'`, named = (column) => /^[A-Za-z_]\w*$/.test(column) ? column : `"${column.replaceAll('"', '""')}"`;
  const parts = [];
  for (const [column, values] of state.chosen) if (values.size) {
    const facet = state.facets.find((each) => each.column === column);
    const list = [...values].map((value) => facet?.type === "bool" ? value.toLowerCase() : quoted(value));
    parts.push(facet?.type === "bool" ? `(${list.map((value) => `${named(column)} = ${value}`).join(" or ")})` : `${named(column)} in (${list.join(", ")})`);
  }
  for (const [column, [least, most]] of state.ranges) {
    if (least !== "") parts.push(`${named(column)} >= ${Number(least)}`);
    if (most !== "") parts.push(`${named(column)} <= ${Number(most)}`);
  }
  return parts.join(" and ") || null;
}

function remember() {
  const place = new URLSearchParams(), index = indexNow();
  if (state.indexes.length > 1 && index) place.set("index", index.name);
  if ($("text").value.trim()) place.set("q", $("text").value.trim());
  if (state.like) place.set("like", state.like);
  for (const [column, values] of state.chosen) for (const value of values) place.append(`in.${column}`, value);
  for (const [column, [least, most]] of state.ranges) if (least !== "" || most !== "") place.set(`range.${column}`, `${least}..${most}`);
  if ($("group").checked) place.set("group", "1");
  const text = place.toString();
  if (location.search.slice(1) !== text) history.pushState(null, "", text ? `?${text}` : location.pathname);
}

// What needs no server, at once: while the rest is fetched a person may type, and that stays.
function fillIn() {
  const place = new URLSearchParams(location.search);
  $("text").value = place.get("q") || "";
  state.like = place.get("like");
  $("group").checked = place.get("group") === "1";
}

async function recall() {
  const place = new URLSearchParams(location.search);
  if (place.get("index")) $("index").value = place.get("index");
  await changeIndex();
  for (const [name, value] of place) {
    if (name.startsWith("in.")) { const column = name.slice(3); state.chosen.set(column, (state.chosen.get(column) || new Set()).add(value)); }
    if (name.startsWith("range.")) state.ranges.set(name.slice(6), value.split(".."));
  }
  drawFacets(); drawAsked();
  if ($("text").value || state.like) await search(); else say(state.indexes.length ? emptyWords() : "");
}

function emptyWords() {
  const index = indexNow();
  if (!index) return "";
  if (!index.takes_text && !index.takes_images) return `This index takes no words: ${index.without_encoder}. Ask the API with a vector, or open a product by ?like=ID.`;
  return index.takes_text ? `Type some words${index.takes_images ? ", add a picture, or both" : ""}. Press / to come back here.` : "Add a picture to search with.";
}

function say(text, isBad = false, where = "said") { $(where).textContent = text; $(where).classList.toggle("bad", isBad); }

async function search(more = false) {
  const number = ++state.asked;
  try { await state.loaded.catch(() => state.loaded = loadIndexes()); } catch (error) { say(error.message, true); return; }
  const text = $("text").value.trim(), index = indexNow();
  if (number !== state.asked || !index) return;
  if (!text && !state.picture && !state.like) { $("answers").replaceChildren(); $("more").hidden = true; say(emptyWords()); return; }
  state.offset = more ? state.offset + PAGE : 0;
  remember();
  const ask = { index: index.name, k: PAGE, offset: state.offset, filter: filterText() };
  if ($("group").checked) ask.group = true;
  if (state.like) ask.product_id = state.like;
  else {
    if (text) ask.text = text;
    if (state.picture) ask.image = state.picture;
    if (text && state.picture) ask.image_weight = Number($("weight").value);
  }
  state.last = ask;
  say("Searching …");
  try {
    const found = await call("search", ask);
    if (number !== state.asked) return;
    const cards = found.hits.map(card);
    if (more) $("answers").append(...cards); else $("answers").replaceChildren(...cards);
    $("more").hidden = !found.more;
    if (more && cards.length) cards[0].querySelector("button").focus();
    if (!found.hits.length && !more) say(ask.filter ? "Nothing passes these filters. Take one away." : "Nothing was found.");
    else say(`${found.more ? "The first " : ""}${state.offset + found.hits.length}, in ${(found.encode_ms + found.search_ms).toFixed(1)} ms (the index: ${found.search_ms.toFixed(1)} ms)`);
    if (found.version !== index.version) await loadIndexes();
  } catch (error) {
    if (number !== state.asked) return;
    if (!more) $("answers").replaceChildren();
    $("more").hidden = true;
    say(error.message, true);
  }
}

function moreLike(hit) {
  Object.assign(state, { like: hit.product_id, picture: null });
  $("text").value = ""; drawAsked(); search(); scrollTo({ top: 0 });
}

async function why(hit) {
  const box = $("why-text");
  box.replaceChildren(element("p", {}, titleOf(hit)));
  try { // pages are exact, so the answer at its place is the same product
    const again = await call("search", { ...state.last, explain: true, k: 1, offset: hit.rank - 1 });
    if (again.hits[0]?.product_id === hit.product_id) hit = again.hits[0];
  } catch (error) { box.append(element("p", { class: "said bad" }, error.message)); }
  const rows = [["Place", hit.rank], ["Score (cosine)", hit.score.toFixed(4)]];
  if (hit.explanation) for (const [name, value] of Object.entries(hit.explanation)) if (value !== null) rows.push([name.replaceAll("_", " "), typeof value === "number" ? Math.round(value * 10000) / 10000 : JSON.stringify(value)]);
  for (const [name, value] of Object.entries(hit.columns)) if (value !== null) rows.push([name, shown(value)]);
  box.append(element("table", {}, element("tbody", {}, ...rows.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, String(name)), element("td", {}, String(value)))))));
  $("why").showModal();
}

function drawAsked() {
  $("like").hidden = !state.like; $("like-id").textContent = state.like || "";
  $("chosen").hidden = !state.picture;
  const index = indexNow();
  $("drop").hidden = !index?.takes_images || Boolean(state.picture);
  $("weight-line").hidden = !(state.picture && $("text").value.trim());
  $("group-line").hidden = !index?.group_field; $("group-field").textContent = index?.group_field || "";
  $("text").disabled = Boolean(index && !index.takes_text);
}

function drawFacets() {
  const boxes = state.facets.map((facet) => {
    const box = element("fieldset", {}, element("legend", {}, facet.column.replaceAll("_", " ")));
    if (facet.values) {
      const chosen = state.chosen.get(facet.column) || new Set();
      box.append(element("div", { class: "values" }, ...Object.entries(facet.values).map(([value, count]) => {
        const check = element("input", { type: "checkbox", checked: chosen.has(value) });
        check.addEventListener("change", () => { const own = state.chosen.get(facet.column) || new Set(); check.checked ? own.add(value) : own.delete(value); state.chosen.set(facet.column, own); countFilters(); search(); });
        return element("label", {}, check, element("span", {}, value), element("span", { class: "count" }, count.toLocaleString()));
      })));
    } else {
      const ends = state.ranges.get(facet.column) || ["", ""];
      const inputs = [0, 1].map((end) => {
        const input = element("input", { type: "number", step: "any", placeholder: shown(end ? facet.most : facet.least), value: ends[end], "aria-label": `${facet.column} ${end ? "at most" : "at least"}` });
        input.addEventListener("change", () => { const own = [...(state.ranges.get(facet.column) || ["", ""])]; own[end] = input.value; state.ranges.set(facet.column, own); countFilters(); search(); });
        return input;
      });
      box.append(element("div", { class: "range" }, inputs[0], "–", inputs[1]));
    }
    return box;
  });
  $("facets").replaceChildren(...boxes);
  $("filters").hidden = !boxes.length;
  countFilters();
}

function countFilters() {
  const count = [...state.chosen.values()].reduce((sum, values) => sum + values.size, 0) + [...state.ranges.values()].flat().filter((end) => end !== "").length;
  $("filter-count").textContent = count ? `(${count})` : ""; $("clear").hidden = !count;
}

async function loadIndexes() {
  state.indexes = await call("indexes");
  const before = $("index").value;
  for (const id of ["index", "left-index", "right-index"]) $(id).replaceChildren(...state.indexes.map((index) => element("option", { value: index.name }, index.name)));
  if (state.indexes.some((index) => index.name === before)) $("index").value = before;
  document.querySelector(".index-choice").hidden = state.indexes.length < 2;
  drawServed();
}

function drawServed() {
  const index = indexNow();
  $("served").textContent = index ? `${index.version} · ${index.products.toLocaleString()} products · ${index.encoder || "vectors made elsewhere"} · recall ${index.recall.toFixed(3)} (${index.recall_k}@${index.recall_k}) · ${index.factory}` : "";
}

async function changeIndex() {
  state.chosen.clear(); state.ranges.clear();
  drawServed(); drawAsked();
  try { state.facets = await call(`facets?index=${encodeURIComponent(indexNow().name)}`); } catch { state.facets = []; }
  drawFacets();
}

async function takePicture(file) {
  if (!file) return;
  const text = await new Promise((resolve) => { const reader = new FileReader(); reader.onload = () => resolve(reader.result); reader.readAsDataURL(file); });
  state.picture = text.split(",", 2)[1]; state.like = null;
  $("chosen-image").src = text;
  drawAsked(); search();
}

// ---- Compare

const fillVersions = (side) => state.filling[side] = listVersions(side);

async function listVersions(side) {
  const index = $(`${side}-index`).value, versions = await call(`versions?index=${encodeURIComponent(index)}`);
  if ($(`${side}-index`).value !== index) return;  // another was chosen meanwhile, and lists its own
  $(`${side}-version`).replaceChildren(...versions.map((each) => element("option", { value: each.version }, each.version + (each.is_current ? " (published)" : ""))));
  if (side === "left" && versions.length > 1) $("left-version").value = versions[1].version;
}

const sideOf = (side) => ({ index: $(`${side}-index`).value, version: $(`${side}-version`).value || null });

async function compareQueries() {
  const queries = [...new Set($("queries").value.split("\n").map((line) => line.trim()).filter(Boolean))];
  if (!queries.length) { say("Write a query first, one a line.", true, "compare-said"); return; }
  try { await Promise.all(Object.values(state.filling)); } catch (error) { say(error.message, true, "compare-said"); return; }
  const left = sideOf("left"), right = sideOf("right"), found = [];
  for (const [number, text] of queries.entries()) {
    say(`${number + 1} of ${queries.length} …`, false, "compare-said");
    try {
      const [before, after] = await Promise.all([left, right].map((side) => call("search", { ...side, text, k: COMPARED })));
      found.push({ text, before: before.hits, after: after.hits, ...changeOf(before.hits, after.hits) });
    } catch (error) { say(`${text}: ${error.message}`, true, "compare-said"); return; }
  }
  found.sort((a, b) => a.both - b.both || b.move - a.move);
  const mean = found.reduce((sum, each) => sum + each.both, 0) / found.length;
  say(`${queries.length} ${queries.length === 1 ? "query" : "queries"}: on average ${mean.toFixed(1)} of ${COMPARED} products are in both answers.`, false, "compare-said");
  const table = $("overlaps");
  table.querySelector("tbody").replaceChildren(...found.map((each) => element("tr", {},
    element("td", {}, element("button", { type: "button", onclick: () => sideBySide(each, left, right) }, each.text)),
    ...[each.both, each.both ? each.move.toFixed(1) : "–", each.fresh, each.lost].map((value) => element("td", {}, String(value))))));
  table.hidden = false;
  sideBySide(found[0], left, right);
}

function changeOf(before, after) {
  const was = new Map(before.map((hit, place) => [hit.product_id, place])), is = new Map(after.map((hit, place) => [hit.product_id, place]));
  const both = [...is.keys()].filter((id) => was.has(id));
  return { both: both.length, move: both.length ? both.reduce((sum, id) => sum + Math.abs(was.get(id) - is.get(id)), 0) / both.length : 0, fresh: is.size - both.length, lost: was.size - both.length };
}

function sideBySide(found, left, right) {
  const place = (hits) => new Map(hits.map((hit, number) => [hit.product_id, number + 1])), was = place(found.before), is = place(found.after);
  const mark = (id, side) => {
    if (side === "left") return is.has(id) ? null : element("span", { class: "mark lost" }, "lost");
    if (!was.has(id)) return element("span", { class: "mark new" }, "new");
    const up = was.get(id) - is.get(id);
    return up ? element("span", { class: "mark moved" }, up > 0 ? `▲ ${up}` : `▼ ${-up}`) : null;
  };
  for (const [side, hits, given] of [["left", found.before, left], ["right", found.after, right]]) {
    $(`${side}-title`).textContent = `“${found.text}” in ${given.index}, ${given.version}`;
    $(`${side}-answers`).replaceChildren(...hits.map((hit, number) => {
      const line = element("li", { tabindex: "0", "data-query": found.text, "data-id": hit.product_id }, element("span", { class: "facts" }, String(number + 1)), picture(hit, titleOf(hit)),
        element("div", {}, element("h3", {}, titleOf(hit)), factsOf(hit)), element("div", {}, mark(hit.product_id, side) || "", element("span", { class: "grade" }, gradeOf(found.text, hit.product_id))));
      line.addEventListener("keydown", (event) => { if (GRADES[event.key]) { judge(found.text, hit.product_id, GRADES[event.key][0]); event.preventDefault(); } });
      return line;
    }));
  }
  $("side-by-side").hidden = $("keys").hidden = false;
}

const gradeKey = (query, id) => JSON.stringify([query, id]), gradeOf = (query, id) => judgments.get(gradeKey(query, id)) || "";
function judge(query, id, grade) {
  judgments.set(gradeKey(query, id), grade);
  localStorage.setItem("shelfmark-judgments", JSON.stringify([...judgments]));
  document.querySelectorAll(".list li").forEach((line) => { if (line.dataset.query === query && line.dataset.id === id) line.querySelector(".grade").textContent = grade; });
  $("judged").textContent = judgments.size;
}

function saveJudgments() {
  const cell = (value) => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const lines = ["query,product_id,label", ...[...judgments].map(([key, grade]) => [...JSON.parse(key), grade].map(cell).join(","))];
  const link = element("a", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })), download: "judgments.csv" });
  link.click();
}

// ---- Wiring

$("ask").addEventListener("submit", (event) => { event.preventDefault(); if ($("text").value.trim()) state.like = null; drawAsked(); search(); });
$("text").addEventListener("input", drawAsked);
$("weight").addEventListener("change", () => search());
$("group").addEventListener("change", () => search());
$("picture").addEventListener("change", (event) => takePicture(event.target.files[0]));
$("forget").addEventListener("click", () => { state.picture = null; $("picture").value = ""; drawAsked(); search(); $("text").focus(); });
$("unlike").addEventListener("click", () => { state.like = null; drawAsked(); search(); $("text").focus(); });
$("clear").addEventListener("click", () => { state.chosen.clear(); state.ranges.clear(); drawFacets(); search(); });
$("more").addEventListener("click", () => search(true));
$("index").addEventListener("change", async () => { await changeIndex(); search(); });
$("compare").addEventListener("submit", (event) => { event.preventDefault(); compareQueries(); });
$("save-judgments").addEventListener("click", saveJudgments);
for (const side of ["left", "right"]) $(`${side}-index`).addEventListener("change", () => fillVersions(side).catch((error) => say(error.message, true, "compare-said")));
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => show(button.dataset.view));
addEventListener("popstate", () => { fillIn(); recall(); });
addEventListener("keydown", (event) => { if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) { $("text").focus(); event.preventDefault(); } });
for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
for (const kind of ["dragleave", "drop"]) addEventListener(kind, () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => { event.preventDefault(); takePicture(event.dataTransfer.files[0]); });

async function show(view) {
  for (const button of document.querySelectorAll("nav button")) button.toggleAttribute("aria-current", button.dataset.view === view);
  document.querySelectorAll("nav button[aria-current]").forEach((button) => button.setAttribute("aria-current", "page"));
  $("view-search").hidden = view !== "search"; $("view-compare").hidden = view !== "compare";
  if (view === "compare" && !$("left-version").options.length) {
    try { await Promise.all(["left", "right"].map(fillVersions)); } catch (error) { say(error.message, true, "compare-said"); }
    if (!$("queries").value && $("text").value) $("queries").value = $("text").value;
  }
}

$("judged").textContent = judgments.size;
fillIn();
try { await (state.loaded = loadIndexes()); await recall(); $("text").focus(); } catch (error) { say(error.message, true); }
if (matchMedia("(max-width: 50rem)").matches) $("filters").open = false;
