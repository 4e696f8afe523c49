// Small helpers. Text reaches the page as text only: nothing here, or elsewhere, sets innerHTML.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (names with a dash, role, for) and children (nodes or text). */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** `text` with the parts [start, end) inside `tag` elements. */
export function marked(text, parts, tag = "b") {
  const nodes = [];
  let at = 0;
  for (const [start, end] of parts) {
    if (start > at) nodes.push(text.slice(at, start));
    nodes.push(el(tag, {}, text.slice(start, end)));
    at = end;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const number = (value) => whole.format(Math.round(value));
export const plural = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;

/** A rate, with a decimal where that says something. */
export const rate = (value) => (value < 20 ? one.format(value) : number(value));

export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} minutes`;
  return `${one.format(seconds / 3600)} hours`;
}

export const score = (value) => (Math.abs(value) < 10 ? value.toFixed(3) : value.toFixed(1));

let hiding;

/** Say something for a moment, to the eye and to screen readers. */
export function toast(text, { bad = false } = {}) {
  const node = $("toast");
  node.textContent = text;
  node.classList.toggle("bad", bad);
  node.classList.add("shown");
  clearTimeout(hiding);
  hiding = setTimeout(() => node.classList.remove("shown"), bad ? 8000 : 3000);
}

/** Put text on the clipboard; the old way where the page was not loaded over HTTPS or from this machine. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not permitted: the old way may be.
    }
  }
  const focused = document.activeElement;
  const area = el("textarea", { value: text, className: "offscreen", readOnly: true, "aria-hidden": "true" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus({ preventScroll: true });
  return done;
}
