// A whole document, with the passages that match in its running text.

import { ApiFailure, documentUrl, request } from "./api.js";
import { $, copy, el, plural, score, toast } from "./dom.js";
import { Minimap } from "./minimap.js";
import { findWords, paragraphs, pieces, sections, unitsOf, wordsOf } from "./text.js";

const LEVELS = 5;
const SHOWN = /\.(txt|md|rst|html?|pdf|docx|epub|jsonl|csv|tsv)$/i; // kinds of files that are no source code

/** How strongly a document's passage is marked, LEVELS to 1; `rank`: 0 for the one that fits best. */
export function level(rank) {
  return Math.max(1, LEVELS - rank);
}

/** A value of the metadata, as one reads it. */
function asText(value) {
  if (Array.isArray(value)) return value.map(asText).join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

export class Reader {
  /** `onClose()`, `onDeleted(id)`. */
  constructor({ onClose, onDeleted }) {
    this.onDeleted = onDeleted;
    this.root = $("reader");
    this.scroller = $("doc-text");
    this.minimap = new Minimap($("minimap"), {
      onJump: (fraction) => this.jump(fraction),
      onPassage: (i) => this.go(i),
    });
    this.clear();
    $("doc-close").onclick = onClose;
    $("passage-next").onclick = () => this.step(1);
    $("passage-previous").onclick = () => this.step(-1);
    $("passage-copy").onclick = () => this.copyPassage();
    $("doc-delete").onclick = () => this.remove();
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.scrolled()).observe(this.scroller);
  }

  get open() {
    return !this.root.hidden;
  }

  clear() {
    this.id = null;
    this.text = "";
    this.passages = [];
    this.groups = [];
    this.at = -1;
    this.root.hidden = true;
    this.scroller.replaceChildren();
  }

  /**
   * Fetch and show a document. `hit`: what a search found of it, its passages best first, or null. Raises ApiFailure.
   */
  async show(id, { hit, query, signal }) {
    const found = await request("GET", documentUrl(id), { signal });
    this.id = id;
    this.text = found.text;
    this.root.hidden = false;
    this.describe(found);
    const units = unitsOf(found.text);
    const passages = (hit?.passages ?? [])
      .map((passage, rank) => ({ ...passage, rank, start: units(passage.start), end: units(passage.end), level: level(rank) }))
      .sort((a, b) => a.start - b.start);
    const same = passages.every((passage) => found.text.slice(passage.start, passage.end) === passage.text);
    this.passages = same ? passages : [];
    this.why = hit ? "No passages to mark" : query ? "Not among the hits of this search" : "Search to have passages marked";
    this.fill(found, wordsOf(query));
    this.minimap.show(found.text, this.passages);
    const best = this.passages.findIndex((passage) => passage.rank === 0);
    this.go(best);
    if (best < 0) this.scroller.scrollTop = 0;
    this.scrolled();
    if (!same) toast("The document has changed since the search: search again to see its passages.", { bad: true });
  }

  describe(found) {
    $("doc-title").textContent = found.title ?? found.id;
    const facts = [plural(found.n_tokens, "token"), plural(found.n_characters, "character")];
    if (found.n_windows > 1) facts.push(`embedded in ${found.n_windows} windows`);
    if (found.truncated) facts.push("only its beginning is embedded");
    $("doc-note").textContent = [found.id, ...facts].join(" · ");
    const hidden = new Set(["path", "suffix", "size", "mtime", "id"]);
    $("doc-metadata").replaceChildren(...Object.entries(found.metadata)
      .filter(([name]) => !hidden.has(name))
      .slice(0, 30)
      .map(([name, value]) => el("li", {}, `${name}: ${asText(value)}`.slice(0, 200))));
  }

  fill(found, words) {
    const file = String(found.metadata.path ?? "").replace(/\.(gz|zst)$/i, "");
    const code = /\.\w+$/.test(file) && !SHOWN.test(file);
    const { text, passages } = this;
    const spans = passages.map(({ start, end }) => [start, end]);
    const wordSpans = spans.flatMap(([start, end]) =>
      findWords(text.slice(start, end), words).map(([a, b]) => [start + a, start + b]));
    this.groups = sections(paragraphs(text, { code }));
    const columns = Math.max(30, (Math.min(this.scroller.clientWidth, 760) - 48) / 8);
    this.nodes = this.groups.map((group) => {
      const section = el("div", { className: "section" });
      let lines = 0;
      for (const paragraph of group) {
        const node = el(paragraph.kind === "heading" ? "h3" : "div", { className: paragraph.kind });
        const rules = paragraph.rules ?? [];
        for (const piece of pieces(paragraph.start, paragraph.end, spans, wordSpans)) node.append(...this.piece(piece, rules));
        section.append(node);
        const hard = paragraph.kind === "code" || paragraph.kind === "plain";
        const content = text.slice(paragraph.start, paragraph.end);
        lines += hard ? content.split("\n").length : content.length / columns + 1.2;
      }
      // Until it is drawn; then the browser keeps its real height.
      section.style.containIntrinsicSize = `auto ${Math.ceil(lines * 26)}px`;
      return section;
    });
    this.scroller.replaceChildren(...this.nodes);
  }

  /** The nodes of one piece of text; lines that only draw a line are drawn as one. */
  piece({ start, end, passage, word }, rules) {
    const cuts = [start, ...rules.flatMap((rule) => [rule[0], rule[1]]).filter((at) => at > start && at < end), end].sort((a, b) => a - b);
    return cuts.slice(1).map((to, i) => {
      const from = cuts[i];
      let node = document.createTextNode(this.text.slice(from, to));
      if (word) node = el("b", {}, node);
      if (passage >= 0) {
        node = el("mark", { className: `s${this.passages[passage].level}`, "data-passage": String(passage) }, node);
      }
      return rules.some((rule) => rule[0] <= from && to <= rule[1]) ? el("span", { className: "rule" }, node) : node;
    });
  }

  step(by) {
    if (!this.passages.length) return;
    const next = this.at + by;
    if (next < 0 || next >= this.passages.length) {
      toast(by > 0 ? "This is the last passage." : "This is the first passage.");
      return;
    }
    this.go(next);
  }

  /** Go to a passage by its position in the list; -1: to none. */
  go(i) {
    this.at = i;
    for (const mark of this.scroller.querySelectorAll("mark")) mark.classList.toggle("current", Number(mark.dataset.passage) === i);
    this.minimap.current(i);
    const passage = this.passages[i];
    const n = this.passages.length;
    $("toolbar").classList.toggle("empty", !n);
    $("passage-note").textContent = passage ? `Passage ${i + 1} of ${n}` : this.why;
    $("passage-score").textContent = passage ? ` · score ${score(passage.score)}${passage.rank ? "" : ", the best"}` : "";
    $("passage-previous").disabled = i <= 0;
    $("passage-next").disabled = i >= n - 1;
    if (!passage) return;
    const mark = this.scroller.querySelector(`mark[data-passage="${i}"]`);
    const place = () => {
      const top = mark.getBoundingClientRect().top - this.scroller.getBoundingClientRect().top;
      this.scroller.scrollTop += top - Math.min(140, this.scroller.clientHeight / 4);
    };
    mark.scrollIntoView({ block: "start" });
    place();
    // What was not drawn before has its real height now.
    requestAnimationFrame(() => requestAnimationFrame(() => { if (mark.isConnected) place(); }));
  }

  /** Go to a fraction of the text. */
  jump(fraction) {
    const position = fraction * this.text.length;
    const i = Math.max(0, this.groups.findLastIndex((group) => group[0].start <= position));
    const node = this.nodes[i];
    if (!node) return;
    const [start, end] = this.range(i);
    const place = () => {
      const box = node.getBoundingClientRect();
      const inside = ((position - start) / Math.max(1, end - start)) * box.height;
      this.scroller.scrollTop += box.top + inside - this.scroller.getBoundingClientRect().top - this.scroller.clientHeight / 3;
    };
    place();
    requestAnimationFrame(() => { if (node.isConnected) place(); });
  }

  range(i) {
    return [this.groups[i][0].start, this.groups[i].at(-1).end];
  }

  scrolled() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      if (!this.text || !this.open) return;
      const { top, bottom } = this.scroller.getBoundingClientRect();
      this.minimap.viewport(this.fractionAt(top), this.fractionAt(bottom));
    });
  }

  /** How far into the text a height on the screen is. */
  fractionAt(y) {
    let low = 0, high = this.nodes.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.nodes[middle].getBoundingClientRect().bottom < y) low = middle + 1; else high = middle;
    }
    const box = this.nodes[low].getBoundingClientRect();
    const [start, end] = this.range(low);
    const inside = Math.min(1, Math.max(0, (y - box.top) / Math.max(1, box.height)));
    return (start + inside * (end - start)) / this.text.length;
  }

  async copyPassage() {
    const passage = this.passages[this.at];
    if (!passage) return;
    const done = await copy(this.text.slice(passage.start, passage.end));
    toast(done ? "Passage copied." : "The browser does not let this page copy.", { bad: !done });
  }

  async remove() {
    const { id } = this;
    const dialog = $("confirm");
    $("confirm-text").textContent = `“${$("doc-title").textContent}” (${id}) goes from the index. Files on disk stay as they are.`;
    const sure = await new Promise((resolve) => {
      $("confirm-yes").onclick = () => { resolve(true); dialog.close(); };
      $("confirm-no").onclick = () => dialog.close();
      dialog.addEventListener("close", () => resolve(false), { once: true });
      dialog.showModal();
      $("confirm-no").focus();
    });
    if (!sure) return;
    $("doc-delete").disabled = true;
    try {
      await request("DELETE", documentUrl(id));
      toast("Deleted.");
      this.onDeleted(id);
    } catch (error) {
      if (!(error instanceof ApiFailure)) throw error;
      toast(`Not deleted: ${error.message}`, { bad: true });
    } finally {
      $("doc-delete").disabled = false;
    }
  }
}
