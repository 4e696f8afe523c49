// The document in small: its lines, the passages in it, and the part on the screen. Down is further into the text.

import { el, score } from "./dom.js";

const WIDTH = 100; // columns that fill it

export class Minimap {
  /** `onJump(fraction)`: go to that part of the text; `onPassage(i)`: go to a passage. */
  constructor(root, { onJump, onPassage }) {
    this.root = root;
    this.onPassage = onPassage;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.view = el("div", { className: "minimap-view", "aria-hidden": "true" });
    this.marks = el("div", { className: "minimap-marks" });
    this.text = "";
    root.append(this.canvas, this.view, this.marks);
    const jump = (event) => {
      const box = root.getBoundingClientRect();
      onJump(Math.min(1, Math.max(0, (event.clientY - box.top) / box.height)));
    };
    root.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target.closest("button")) return;
      event.preventDefault();
      root.setPointerCapture(event.pointerId);
      jump(event);
    });
    root.addEventListener("pointermove", (event) => { if (root.hasPointerCapture(event.pointerId)) jump(event); });
    new ResizeObserver(() => this.draw()).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** `passages`: [{start, end, level, score}] by position in the text. */
  show(text, passages) {
    this.text = text;
    const length = Math.max(1, text.length);
    this.marks.replaceChildren(...passages.map((passage, i) => {
      const at = Math.round((100 * passage.start) / length);
      const mark = el("button", {
        type: "button",
        className: `minimap-mark s${passage.level}`,
        tabIndex: -1,
        title: `Score ${score(passage.score)}, at ${at} %`,
        "aria-label": `Passage ${i + 1} of ${passages.length}, score ${score(passage.score)}, at ${at} % of the text`,
        onclick: () => this.onPassage(i),
      });
      mark.style.top = `${(100 * passage.start) / length}%`;
      mark.style.height = `${(100 * (passage.end - passage.start)) / length}%`;
      return mark;
    }));
    this.draw();
  }

  current(i) {
    [...this.marks.children].forEach((mark, at) => mark.classList.toggle("current", at === i));
  }

  /** The part of the text on the screen, as fractions. */
  viewport(from, to) {
    this.view.style.top = `${100 * from}%`;
    this.view.style.height = `${100 * Math.max(0, to - from)}%`;
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.root;
    if (!width || !height) return;
    const scale = window.devicePixelRatio || 1;
    const rows = Math.round(height / 2);
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = getComputedStyle(this.root).color;
    const { text } = this;
    for (let row = 0; row < rows; row++) {
      const start = Math.floor((row * text.length) / rows);
      const end = Math.max(start + 1, Math.floor(((row + 1) * text.length) / rows));
      const fill = lineLength(text, start, end) / WIDTH;
      if (fill > 0) context.fillRect(6, row * 2, Math.max(1, Math.min(1, fill) * (width - 12)), 1);
    }
  }
}

/** Mean length of the lines that [start, end) touches. */
function lineLength(text, start, end) {
  if (start >= text.length) return 0;
  const from = text.lastIndexOf("\n", start - 1) + 1;
  let to = text.indexOf("\n", end - 1);
  if (to < 0) to = text.length;
  if (to - from > 4000) return WIDTH; // one line, or very many
  const lines = text.slice(from, to).split("\n");
  return lines.reduce((sum, line) => sum + line.trimEnd().length, 0) / lines.length;
}
