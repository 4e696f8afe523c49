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
    this.onChange = onChange;
    const input = $("filter");
    const add = () => {
      const text = input.value.trim();
      if (!text) return;
      const parsed = parseFilter(text);
      input.setCustomValidity(parsed ? "" : "Write field=value");
      if (!parsed) { input.reportValidity(); return; }
      input.value = "";
      // One value for each field: all must hold.
      this.change([...this.texts.filter((other) => parseFilter(other)[0] !== parsed[0]), filterText(...parsed)]);
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); add(); }
      if (event.key === "Backspace" && !input.value && this.texts.length) this.change(this.texts.slice(0, -1));
    });
    input.addEventListener("input", () => input.setCustomValidity(""));
    input.addEventListener("change", add);
  }

  change(texts) {
    this.show(texts);
    this.onChange(texts);
  }

  show(texts) {
    this.texts = texts.filter(parseFilter);
    $("chips").replaceChildren(...this.texts.map((text) => el("li", {}, text, el("button", {
      type: "button",
      "aria-label": `Remove the filter ${text}`,
      onclick: () => { this.change(this.texts.filter((other) => other !== text)); $("filter").focus(); },
    }, "×"))));
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
