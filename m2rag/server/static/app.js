// The page: its address says what is shown, everything else follows from it.

import { ApiFailure, request } from "./api.js";
import { $, el, number, plural, toast } from "./dom.js";
import { Filters } from "./filters.js";
import { documentItems, hitItems } from "./hits.js";
import { Reader } from "./reader.js";
import { Uploads, chosen, dropped } from "./uploads.js";

const PASSAGES = 8; // per hit: what is marked in the text
const PER_PAGE = 50;
const THEME = "m2rag-theme";
const NAME = document.title;
const MODES = {
  hybrid: ["Both", "Documents that fit by their meaning or by their words; the best of both comes first."],
  dense: ["By meaning", "Compares your question with whole documents; the words need not be the same."],
  lexical: ["By words", "Documents that hold the words of your question, rare words first."],
};

const state = { query: "", mode: null, k: 10, filters: [], doc: null };
let info = null;
let found = null; // of the search on the screen: {key, hits, mode, query}
let listing = { offset: 0, total: 0 };
let searching = null;
let opening = null;

// The address

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const k = Number(given.get("k"));
  state.query = given.get("q") ?? "";
  state.mode = info?.modes.includes(given.get("mode")) ? given.get("mode") : null;
  state.k = Number.isInteger(k) && k >= 1 && k <= 100 ? k : 10;
  state.filters = given.getAll("f");
  state.doc = given.get("doc");
}

function address(changes = {}) {
  const { query, mode, k, filters, doc } = { ...state, ...changes };
  const parts = new URLSearchParams();
  if (query) parts.set("q", query);
  if (query && mode) parts.set("mode", mode);
  if (query && k !== 10) parts.set("k", k);
  for (const filter of filters) parts.append("f", filter);
  if (doc !== null) parts.set("doc", doc);
  return `#${parts}`;
}

function go(changes) {
  const to = address(changes);
  if (to !== location.hash) history.pushState(null, "", to);
  return apply();
}

async function apply() {
  read();
  $("query").value = state.query;
  filters.show(state.filters);
  showMode();
  if (![...$("k").options].some((option) => Number(option.value) === state.k)) $("k").append(el("option", {}, String(state.k)));
  $("k").value = String(state.k);
  document.title = state.query ? `${state.query} · ${NAME}` : NAME;
  await (state.query ? search() : list());
  await openDocument();
}

// What is in the index

async function loadInfo() {
  info = await request("GET", "/api/index");
  uploads.info = info;
  const parts = [plural(info.documents, "document"), plural(info.tokens, "token")];
  if (info.model) parts.push(info.model.split("/").at(-1));
  $("summary").replaceChildren(el("span", {}, parts.join(" · ")));
  if (info.temporary) $("summary").append(el("span", { className: "badge", title: "The documents are forgotten when the server stops" }, "temporary"));
  $("summary").title = `Index: ${info.location}`;
  $("files").accept = "";
  filters.suggest(info.fields);
  filters.offer(info.facets);
  drawModes();
  showBlank();
}

function drawModes() {
  const box = $("modes");
  if (box.querySelectorAll("input").length === info.modes.length) return;
  const order = Object.keys(MODES).filter((mode) => info.modes.includes(mode));
  box.replaceChildren(box.querySelector("legend"), ...order.map((mode) =>
    el("label", {}, el("input", { type: "radio", name: "mode", value: mode, onchange: () => rerun({ mode }) }), el("span", {}, MODES[mode][0]))));
  showMode();
}

const modeNow = () => state.mode ?? (info?.modes.includes("hybrid") ? "hybrid" : "dense");

function showMode() {
  const mode = modeNow();
  for (const input of $("modes").querySelectorAll("input")) input.checked = input.value === mode;
  $("modes").hidden = (info?.modes.length ?? 0) < 2;
  $("mode-help").textContent = MODES[mode][1];
}

/** The right side while no document is open. */
function showBlank() {
  if (!info) return;
  const inner = $("blank-inner");
  const empty = info.documents === 0;
  document.body.classList.toggle("empty", empty);
  const kind = empty ? "empty" : "some";
  if (inner.dataset.kind === kind) return;
  inner.dataset.kind = kind;
  if (!empty) {
    inner.replaceChildren(
      el("img", { src: "/page/icon.svg", alt: "", width: 56, height: 56 }),
      el("h2", {}, "Open a document to read it here"),
      el("p", {}, "The passages that match your question are marked in the whole text. The map beside it shows where in the document they are."),
      ...(info.questions.length ? [el("p", { className: "note" }, "Ask, for example:"), el("ul", { className: "questions" }, ...info.questions.map((query) =>
        el("li", {}, el("button", { type: "button", className: "quiet", onclick: () => go({ query, doc: null }) }, query))))] : []),
      el("p", { className: "note" }, "Drop files or folders anywhere to add them."));
    return;
  }
  const choose = (label, id, className) => el("button", { type: "button", className, onclick: () => $(id).click() }, label);
  const kinds = ["PDF", "DOCX", "EPUB", "HTML", "MD", "RST", "TXT", "JSONL", "CSV"].filter((name) => info.suffixes.includes(`.${name.toLowerCase()}`));
  inner.replaceChildren(
    el("h2", {}, "Drop files or a folder here"),
    el("p", {}, "Each document is read and embedded whole. Then ask for it in your own words."),
    el("div", { className: "blank-actions" }, choose("Choose files", "files", "primary"), choose("Choose a folder", "folder", "quiet")),
    el("p", { className: "note" }, `Reads ${kinds.join(", ")} and source code, also compressed (${info.packings.join(", ")}).`),
    el("p", { className: "note" }, info.temporary ? "The documents are forgotten when the server stops." : `They go into ${info.location}.`));
}

// The list

function message(text, { bad = false, retry = null } = {}) {
  $("message").hidden = !text;
  $("message").classList.toggle("bad", bad);
  $("message").replaceChildren(...(text ? [el("p", {}, text)] : []),
    ...(retry ? [el("button", { type: "button", className: "quiet", onclick: retry }, "Try again")] : []));
}

const href = (doc) => address({ doc });

const shownFields = () => info?.facets.map((facet) => facet.name) ?? [];

/** What of the filters narrows a list without a question, as the server takes it. */
function having() {
  const chosen = Object.entries(filters.condition ?? {}).filter(([field]) => shownFields().includes(field));
  return chosen.length ? { having: JSON.stringify(Object.fromEntries(chosen)) } : {};
}

async function search() {
  const key = address({ doc: null });
  // What is shown answers it, unless a search for something else is about to take its place.
  if (!searching && found?.key === key) return;
  searching?.abort();
  const control = searching = new AbortController();
  $("prefix").hidden = $("more").hidden = true;
  $("results-title").textContent = "Searching…";
  $("results-note").textContent = "";
  $("results").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const { hits } = await request("POST", "/api/search", {
      json: { query: state.query, k: state.k, mode: modeNow(), filter: filters.condition, n_passages: PASSAGES },
      signal: control.signal,
    });
    found = { key, hits, query: state.query };
    $("list").replaceChildren(...hitItems(hits, { query: state.query, mode: modeNow(), href, facets: shownFields() }));
    $("results-title").textContent = hits.length ? plural(hits.length, "hit") : "Nothing found";
    $("results-note").textContent = hits.length ? `${Math.max(1, Math.round(performance.now() - started))} ms` : "";
    const none = state.filters.length ? "No document has all of these filters. Remove one and search again." :
      info?.documents ? "Try other words." : "There are no documents yet: add some first.";
    message(hits.length ? "" : none);
    $("left").scrollTop = 0;
  } catch (error) {
    if (error.name === "AbortError") return;
    failed(error);
  } finally {
    if (searching === control) { searching = null; $("results").removeAttribute("aria-busy"); }
  }
}

async function list({ more = false, quiet = false } = {}) {
  searching?.abort();
  found = null;
  const prefix = $("prefix").value;
  const offset = more ? listing.offset + PER_PAGE : 0;
  const limit = quiet ? Math.min(200, listing.offset + PER_PAGE) : PER_PAGE;
  try {
    const { total, documents } = await request("GET", `/api/documents?${new URLSearchParams({ offset, limit, prefix, ...having() })}`);
    if (state.query) return; // a search was begun meanwhile
    if (!quiet) listing.offset = offset;
    listing.total = total;
    const items = documentItems(documents, { href, facets: shownFields() });
    if (more) $("list").append(...items);
    else keepFocus(() => $("list").replaceChildren(...items));
    $("results-title").textContent = total || info?.documents ? plural(total, "document") : "No documents yet";
    $("results-note").textContent = "";
    $("prefix").hidden = !prefix && total <= 10;
    $("more").hidden = $("list").children.length >= total;
    message(total || !info?.documents ? "" : prefix ? "No name begins with this." : "No document has all of these filters.");
  } catch (error) {
    failed(error);
  }
  markOpen();
}

/** Draw the list anew without losing the reader's place in it. */
function keepFocus(draw) {
  const id = document.activeElement?.closest("#list")  ? document.activeElement.dataset.id : null;
  draw();
  if (id !== null) item(id)?.focus({ preventScroll: true });
}

function failed(error) {
  if (!(error instanceof ApiFailure)) throw error;
  $("list").replaceChildren();
  $("results-title").textContent = "That did not work";
  $("results-note").textContent = "";
  $("more").hidden = true;
  found = null;
  message(error.message, { bad: true, retry: () => apply() });
}

const item = (id) => [...$("list").querySelectorAll("a.hit")].find((link) => link.dataset.id === id);

function markOpen() {
  for (const link of $("list").querySelectorAll("a.hit")) {
    if (link.dataset.id === state.doc) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    link.href = href(link.dataset.id);
  }
}

// The document

async function openDocument() {
  markOpen();
  const id = state.doc;
  const key = `${id}\n${found?.key ?? ""}`;
  if (id === null) {
    opening?.abort();
    const was = reader.id;
    reader.clear();
    reader.key = null;
    document.body.classList.remove("reading");
    if (was !== null) item(was)?.focus();
    return;
  }
  if (reader.key === key) return;
  opening?.abort();
  const control = opening = new AbortController();
  try {
    document.body.classList.add("reading");
    await reader.show(id, {
      hit: found?.hits.find((hit) => hit.id === id) ?? null,
      query: found?.query ?? "",
      signal: control.signal,
    });
    reader.key = key;
    $("doc-text").focus({ preventScroll: true });
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiFailure)) throw error;
    toast(error.status === 404 ? `${error.message}.` : `The document cannot be shown: ${error.message}`, { bad: true });
    history.replaceState(null, "", address({ doc: null }));
    state.doc = null;
    await openDocument();
  }
}

const reader = new Reader({
  onClose: () => go({ doc: null }),
  onDeleted: async (id) => {
    if (found) found.hits = found.hits.filter((hit) => hit.id !== id);
    const link = item(id)?.parentElement;
    const next = (link?.nextElementSibling ?? link?.previousElementSibling)?.querySelector("a");
    link?.remove();
    if (found) $("results-title").textContent = found.hits.length ? plural(found.hits.length, "hit") : "Nothing left of what was found";
    await go({ doc: null });
    (next ?? $("query")).focus();
    await refresh();
  },
});

// Searching

/** Search again with something changed; without a question, keep it for the next one. */
function rerun(changes) {
  const query = $("query").value.trim();
  return go({ query, ...changes });
}

const filters = new Filters((texts) => rerun({ filters: texts }));

$("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const query = $("query").value.trim();
  found = null;
  await go({ query, doc: null });
  if (query) $("query").focus();
});
$("query").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("search").requestSubmit();
});
if (!CSS.supports("field-sizing", "content")) {
  $("query").addEventListener("input", () => {
    $("query").style.height = "auto";
    $("query").style.height = `${$("query").scrollHeight + 2}px`;
  });
}
$("k").addEventListener("change", () => rerun({ k: Number($("k").value) }));
$("prefix").addEventListener("input", () => list());
$("more").addEventListener("click", async () => {
  const n = $("list").children.length;
  await list({ more: true });
  $("list").children[n]?.querySelector("a").focus();
});
$("home").addEventListener("click", (event) => {
  event.preventDefault();
  go({ query: "", filters: [], doc: null });
});
$("skip").addEventListener("click", (event) => { event.preventDefault(); $("query").focus(); });
$("list").addEventListener("click", (event) => {
  const link = event.target.closest("a.hit");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go({ doc: link.dataset.id });
});

// Adding documents

const uploads = new Uploads({ onIndexed: () => refresh() });

let refreshing = false;

/** The numbers, and the list where no search is on the screen. */
async function refresh() {
  if (refreshing) return;
  refreshing = true;
  try {
    await loadInfo();
    if (!state.query) await list({ quiet: true });
  } catch (error) {
    if (!(error instanceof ApiFailure)) throw error;
  } finally {
    refreshing = false;
  }
}

for (const [button, input] of [["add-files", "files"], ["add-folder", "folder"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    if (info) uploads.add(chosen($(input)));
    $(input).value = "";
  });
}

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
window.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = false;
});
// Not when it goes from one part of the page to another.
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
window.addEventListener("drop", async (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = true;
  try {
    const files = await dropped(event.dataTransfer);
    if (info) uploads.add(files);
  } catch (error) {
    toast(`The browser cannot read what was dropped: ${error.message}`, { bad: true });
  }
});

// The keyboard

function moveInList(by) {
  const links = [...$("list").querySelectorAll("a.hit")];
  const at = links.indexOf(document.activeElement);
  if (at < 0) (by > 0 ? links[0] : links.at(-1))?.focus();
  else if (at + by < 0) $("query").focus();
  else links[Math.min(links.length - 1, at + by)].focus();
}

const atEndOfQuery = (target) => target === $("query") && target.selectionStart === target.value.length;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target;
  const typing = target.matches("input:not([type=radio]), textarea, select");
  const inList = target.closest("#list") !== null;
  const { key } = event;
  if ((key === "ArrowDown" || key === "ArrowUp") && (inList || (key === "ArrowDown" && atEndOfQuery(target)))) moveInList(key === "ArrowDown" ? 1 : -1);
  else if (key === "Escape" && reader.open) go({ doc: null });
  else if (key === "Escape" && inList) $("query").focus();
  else if (typing && !(key === "/" && target.matches("select"))) return;
  else if (key === "/") { $("query").focus(); $("query").select(); }
  else if (key === "?") $("shortcuts").showModal();
  else if (reader.open && key === "n") reader.step(1);
  else if (reader.open && key === "p") reader.step(-1);
  else if (reader.open && key === "c") reader.copyPassage();
  else return;
  event.preventDefault();
});
$("help").addEventListener("click", () => $("shortcuts").showModal());
$("shortcuts-close").addEventListener("click", () => $("shortcuts").close());

// Light and dark

const THEMES = { system: ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = THEMES[theme][0];
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[theme][1]}. Change`);
  $("theme").title = `Colours: ${THEMES[theme][1]}`;
  reader.minimap.draw();
}

function stored() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null; // storage may be blocked; the choice then lasts as long as the page
  }
}

$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  setTheme(next);
  try {
    localStorage.setItem(THEME, next);
  } catch {
    // As above.
  }
});

// The start

setTheme(THEMES[stored()] ? stored() : "system");
window.addEventListener("popstate", () => apply()); // links within the page, too

async function start() {
  try {
    await loadInfo();
    await apply();
    uploads.follow({ mine: false });
    if (!state.doc) $("query").focus();
  } catch (error) {
    failed(error);
    $("message").querySelector("button").onclick = start;
  }
}

start();
