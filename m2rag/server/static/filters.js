// Filters: metadata fields and the values they must have.

import { $, el } from "./dom.js";

/** "field=value" as [field, value]; numbers, true and false are read as such unless quoted. Null if it is none. */
export function parseFilter(text) {
  const equals = text.indexOf("=");
  if (equals < 1) return null;
  const field = text.slice(0, equals).trim();
  const raw = text.slice(equals + 1).trim();
  try {
    const value = JSON.parse(raw);
    if (["string", "number", "boolean"].includes(typeof value)) return [field, value];
  } catch {
    // Not quoted, not a number: as it is.
  }
  return [field, raw];
}

/** The other way round. */
export function filterText(field, value) {
  const plain = parseFilter(`${field}=${value}`);
  return `${field}=${plain && plain[1] === value ? value : JSON.stringify(value)}`;
}

export class Filters {
  /** `onChange(filters)`: the texts of all of them. */
  constructor(onChange) {
    this.texts = [];
    this.facets = []; // fields with a list of values each, as the server tells them
    this.onChange = onChange;
    const input = $("filter");
    const add = () => {
      const text = input.value.trim();
      if (!text) return;
      const parsed = parseFilter(text);
      input.setCustomValidity(parsed ? "" : "Write field=value");
      if (!parsed) { input.reportValidity(); return; }
      input.value = "";
      this.set(...parsed);
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); add(); }
      if (event.key === "Backspace" && !input.value && this.texts.length) this.change(this.texts.slice(0, -1));
    });
    input.addEventListener("input", () => input.setCustomValidity(""));
    input.addEventListener("change", add);
  }

  /** One value for each field: all must hold. Undefined: any. */
  set(field, value) {
    const others = this.texts.filter((other) => parseFilter(other)[0] !== field);
    this.change(value === undefined ? others : [...others, filterText(field, value)]);
  }

  change(texts) {
    this.show(texts);
    this.onChange(texts);
  }

  show(texts) {
    this.texts = texts.filter(parseFilter);
    const listed = this.showFacets();
    $("chips").replaceChildren(...this.texts.filter((text) => !listed.has(text)).map((text) => el("li", {}, text, el("button", {
      type: "button",
      "aria-label": `Remove the filter ${text}`,
      onclick: () => { this.change(this.texts.filter((other) => other !== text)); $("filter").focus(); },
    }, "×"))));
  }

  /** Choose in the lists what the texts say; the texts that are shown so. */
  showFacets() {
    const listed = new Set();
    for (const select of $("facets").querySelectorAll("select")) {
      const { name, values } = this.facets.find((facet) => facet.name === select.name);
      const at = values.findIndex(({ value }) => this.texts.includes(filterText(name, value)));
      select.value = String(at); // -1: any
      select.classList.toggle("chosen", at >= 0);
      if (at >= 0) listed.add(filterText(name, values[at].value));
    }
    if (this.facets.length) $("facets-clear").hidden = listed.size === 0;
    return listed;
  }

  /** The lists to choose from. */
  offer(facets) {
    const given = JSON.stringify(facets);
    if (this.offered === given) return; // a list that is open stays open
    this.offered = given;
    const focused = $("facets").contains(document.activeElement) ? document.activeElement.name : "";
    this.facets = facets.filter(({ values }) => values.length);
    $("facets").hidden = !this.facets.length;
    $("facets").replaceChildren(...this.facets.map(({ name, label, values }) => el("label", {}, el("span", {}, label), el("select", {
      name,
      onchange: (event) => this.set(name, values[Number(event.target.value)]?.value),
    }, el("option", { value: "-1" }, "any"), ...values.map(({ value, documents }, i) => el("option", { value: String(i) }, `${value} (${documents})`))))),
    el("button", { type: "button", className: "quiet small", id: "facets-clear", onclick: () => { this.change([]); $("query").focus(); } }, "Clear filters"));
    $("filter").hidden = this.facets.length > 0;
    if (focused) $("facets").querySelector(`select[name="${CSS.escape(focused)}"]`)?.focus();
    this.show(this.texts);
  }

  /** Fields and values to choose from, as the server tells them. */
  suggest(fields) {
    $("filter-list").replaceChildren(...fields.flatMap(({ name, values }) =>
      values.map((value) => el("option", { value: filterText(name, value) }))));
    $("filters").hidden = !fields.length && !this.texts.length;
  }

  /** For the server; null for none. */
  get condition() {
    return this.texts.length ? Object.fromEntries(this.texts.map(parseFilter)) : null;
  }
}
