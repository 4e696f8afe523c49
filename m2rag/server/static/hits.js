// The list: what a search found, or all documents.

import { el, marked, plural, score } from "./dom.js";
import { level } from "./reader.js";
import { findWords, snippet, wordsOf } from "./text.js";

const MEANING = {
  dense: "How near question and document are by meaning (cosine)",
  lexical: "How well the words match (BM25)",
  hybrid: "Meaning and words together: the best is about 1",
};

function badges({ n_windows, truncated }) {
  const found = [];
  if (n_windows > 1) found.push(el("span", { className: "badge", title: "Longer than the model takes at once: embedded in overlapping windows" }, `${n_windows} windows`));
  if (truncated) found.push(el("span", { className: "badge warn", title: "Only its beginning is embedded" }, "cut"));
  return found;
}

function note(document, facets) {
  const name = document.title && document.title !== document.id ? [el("span", { className: "id" }, document.id)] : [];
  const known = facets.flatMap((field) => document.metadata[field] ?? []);
  if (known.length) return el("p", { className: "hit-note" }, el("span", {}, known.join(" · ")), ...badges(document));
  return el("p", { className: "hit-note" }, ...name, el("span", {}, plural(document.n_tokens, "token")), ...badges(document));
}

/** The list items of a search; `href(id)` leads to a document, `facets` are the metadata fields shown with it. */
export function hitItems(hits, { query, mode, href, facets }) {
  const words = wordsOf(query);
  return hits.map((hit, i) => {
    const parts = [
      el("div", { className: "hit-head" },
        el("span", { className: "rank", "aria-hidden": "true" }, String(i + 1)),
        el("span", { className: "hit-title" }, hit.title ?? hit.id),
        el("span", { className: "score", title: MEANING[mode] }, score(hit.score))),
      note(hit, facets),
    ];
    if (hit.passages.length) {
      const text = snippet(hit.passages[0].text, words);
      parts.push(el("p", { className: "snippet" }, ...marked(text, findWords(text, words))), strip(hit));
    }
    return item(hit.id, parts, href);
  });
}

/** The list items of documents without a search. */
export function documentItems(documents, { href, facets }) {
  return documents.map((document) => item(document.id, [
    el("div", { className: "hit-head" }, el("span", { className: "hit-title" }, document.title ?? document.id)),
    note(document, facets),
  ], href));
}

function item(id, parts, href) {
  return el("li", {}, el("a", { className: "hit", href: href(id), "data-id": id }, ...parts));
}

/** Where in the document its passages are, from left to right. */
function strip(hit) {
  const bar = el("div", { className: "strip", "aria-hidden": "true" });
  const length = Math.max(1, hit.n_characters);
  for (const [rank, passage] of hit.passages.entries()) {
    const mark = el("span", { className: `s${level(rank)}` });
    mark.style.left = `${(100 * passage.start) / length}%`;
    mark.style.width = `${(100 * (passage.end - passage.start)) / length}%`;
    bar.append(mark);
  }
  return bar;
}
