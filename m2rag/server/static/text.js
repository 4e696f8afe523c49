// Text: where passages are in it, which words are the question's, and how it is laid out.

/**
 * Positions as the server counts them (characters) into positions as this language does (UTF-16 units): they differ
 * behind characters that take two units.
 */
export function unitsOf(text) {
  if (!/[\ud800-\udbff]/.test(text)) return (position) => position;
  const pairs = []; // position in characters of each character of two units
  let characters = 0;
  for (let i = 0; i < text.length; i++, characters++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0xd800 && unit < 0xdc00 && i + 1 < text.length) { pairs.push(characters); i++; }
  }
  return (position) => {
    let low = 0, high = pairs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pairs[middle] < position) low = middle + 1; else high = middle;
    }
    return position + low;
  };
}

const COMMON = new Set((
  "a about after all also an and any are as at be been before but by can did do does else for from had has have how " +
  "i if in into is it its may me more my no not of on one or our out should so some such than that the their them " +
  "then there these they this to was we were what when where which while who whose why will with without would you " +
  "your").split(" "));
const WORD = /[\p{L}\p{N}_]+/gu;
const ENDINGS = ["ings", "ing", "ies", "ed", "es", "s", "y", "e"];

/** Enough to see that "files" and "file", "embedded" and "embedding" belong together. */
function stem(word) {
  word = word.toLowerCase();
  const ending = ENDINGS.find((end) => word.endsWith(end) && word.length - end.length >= 3);
  return ending ? word.slice(0, -ending.length) : word;
}

/** The words of a question that say something. */
export function wordsOf(question) {
  return new Set((question.match(WORD) ?? []).filter((word) => !COMMON.has(word.toLowerCase())).map(stem));
}

/** [start, end) of the words of `text` that are the question's. */
export function findWords(text, words) {
  if (!words.size) return [];
  return [...text.matchAll(WORD)]
    .filter((match) => words.has(stem(match[0])))
    .map((match) => [match.index, match.index + match[0].length]);
}

/** About `width` characters of a passage around the sentence that has most words of the question. */
export function snippet(text, words, width = 300) {
  const sentences = text.replace(/\s+/g, " ").trim().split(/(?<=[.!?])\s+(?=["'([]?\p{Lu}|["'([]?\d)/u);
  const shared = sentences.map((sentence) => new Set(findWords(sentence, words).map(([a, b]) => stem(sentence.slice(a, b)))).size);
  let first = shared.indexOf(Math.max(...shared));
  let last = first;
  let length = sentences[first].length;
  while (last + 1 < sentences.length && length + sentences[last + 1].length < width) length += 1 + sentences[++last].length;
  while (first > 0 && length + sentences[first - 1].length < width) length += 1 + sentences[--first].length;
  let shown = sentences.slice(first, last + 1).join(" ");
  const cut = shown.length > width;
  if (cut) {
    const space = shown.lastIndexOf(" ", width);
    shown = [...shown.slice(0, space > 0 ? space : width)].filter((c) => c.length > 1 || !/[\ud800-\udfff]/.test(c)).join("");
  }
  return `${first > 0 ? "… " : ""}${shown}${cut || last + 1 < sentences.length ? " …" : ""}`;
}

const RULE = /^\s*([=\-~^"'`#*+.:_])\1{2,}\s*$/;
const FENCE = /^\s*(```|~~~)/;
const ITEM = /^\s*([-*+•–]|\d{1,3}[.)]|\d{1,3}(\.\d{1,3})+\.?(?=\s+["'“(]?\p{Lu})|[a-zA-Z][.)]|\.\. \[[^\]]+\])\s+\S/u;
// A line between blank ones that looks like a heading: short, and not the end of a sentence.
const TITLE = /^(?=.{2,70}$)[\p{Lu}\d"'“][^|=<>{}\\]*[^\s.,:;!?|=<>{}\\]$/u;
const LONGEST = 8000; // a paragraph beyond this is divided, so that what is drawn at once stays small
const SECTION = 6000;
const NARROWEST = 45; // columns: text that was broken into lines by hand is at least as wide

/**
 * Divide a text into paragraphs {start, end, kind} that cover it without a gap. The kind decides how it looks, never
 * what it says: "heading"; "title" (a line that is most likely one); "prose" (its line breaks were made to fit a width, and are not shown); "item" (the same, in
 * a list); "plain" (lines as they are); "code" (the same, in letters of one width).
 */
export function paragraphs(text, { code = false } = {}) {
  const found = [];
  let lines = []; // of the paragraph at hand: [start, end, content]
  let start = 0;
  let fenced = false; // between ``` and ```
  let literal = Infinity; // what is indented further is code: it comes behind a paragraph that ends in "::"
  const close = (end) => {
    if (end <= start) return;
    const margin = Math.min(...lines.map(([, , content]) => content.search(/\S/)));
    if (margin <= literal) literal = lines.at(-1)?.[2].endsWith("::") || /^\s*\.\. [\w-]+::/.test(lines[0]?.[2] ?? "") ? margin : Infinity;
    else lines.literal = true;
    found.push(...divided(start, end, lines, text, code || fenced || lines.literal));
    lines = [];
    start = end;
  };
  let blank = false;
  for (let at = 0; at < text.length;) {
    const newline = text.indexOf("\n", at);
    const next = newline < 0 ? text.length : newline + 1;
    const content = text.slice(at, newline < 0 ? next : newline).trimEnd();
    if (!content) {
      blank = true;
    } else if (!code && (fenced || FENCE.test(content))) {
      if (!fenced) close(at);
      lines.push([at, next, content]);
      if (fenced && FENCE.test(content)) { close(next); fenced = false; } else fenced = true;
      blank = false;
    } else {
      const starts = blank || (!code && lines.length && (ITEM.test(content) || /^#{1,6} /.test(content) || /^#{1,6} /.test(lines[0][2])));
      if (starts) close(at);
      blank = false;
      lines.push([at, next, content]);
    }
    at = next;
  }
  close(text.length);
  return found;
}

function divided(start, end, lines, text, code) {
  if (code || !lines.length) return chopped({ start, end, kind: "code" }, text);
  const heading = headingOf(lines);
  if (heading) return [{ start, end, kind: "heading", rules: heading }];
  const kind = ITEM.test(lines[0][2]) ? "item" : "prose";
  if (lines.length === 1) {
    const line = lines[0][2];
    if (TITLE.test(line)) return [{ start, end, kind: "title" }];
    return chopped({ start, end, kind: /^\s/.test(line) && line.length < 90 && kind !== "item" ? looks(lines) : kind }, text);
  }
  const full = fullLines(lines);
  if (full.filter(Boolean).length < 0.7 * full.length || looks(lines) === "code") {
    return chopped({ start, end, kind: looks(lines) }, text);
  }
  // Text without blank lines between paragraphs, as of PDF files: a line that is not full and ends a sentence ends one.
  const parts = [];
  let from = start;
  for (let i = 0; i < full.length; i++) {
    if (!full[i] && /[.!?:"'”)]$/.test(lines[i][2])) {
      parts.push(...chopped({ start: from, end: lines[i][1], kind: parts.length ? "prose" : kind }, text));
      from = lines[i][1];
    }
  }
  parts.push(...chopped({ start: from, end, kind: parts.length ? "prose" : kind }, text));
  return parts;
}

/** The lines of a heading that only draw a line, null if it is none. */
function headingOf(lines) {
  if (lines.at(-1)[1] - lines[0][0] > 500) return null;
  if (lines.length === 1 && /^#{1,6} /.test(lines[0][2])) return [];
  if (lines.length === 2 && RULE.test(lines[1][2]) && !RULE.test(lines[0][2])) return [lines[1]];
  if (lines.length === 3 && RULE.test(lines[0][2]) && RULE.test(lines[2][2]) && !RULE.test(lines[1][2])) return [lines[0], lines[2]];
  return null;
}

/** For each line but the last: whether the first word of the next would not have fitted in. */
function fullLines(lines) {
  const width = Math.max(...lines.map(([, , content]) => content.length));
  if (width < NARROWEST) return lines.slice(1).map(() => false);
  return lines.slice(1).map(([, , content], i) => lines[i][2].length + 1 + content.trim().split(/\s/, 1)[0].length > width - 10);
}

function looks(lines) {
  const code = lines.some(([, , content]) =>
    /^\s*(>>>|\$ |\||\+[-=]|\/\/|#include|@)/.test(content) || /\S( {3,}|\t)\S/.test(content) || /[{};]$/.test(content) || RULE.test(content));
  const indented = lines.every(([, , content]) => /^\s{2}/.test(content) && /[=(){}<>[\]]/.test(content));
  return code || indented || lines.every(([, , content]) => /^( {4}|\t)/.test(content)) ? "code" : "plain";
}

function chopped(paragraph, text) {
  const parts = [];
  let { start } = paragraph;
  while (paragraph.end - start > LONGEST) {
    let end = text.lastIndexOf("\n", start + LONGEST) + 1;
    if (end <= start) end = text.lastIndexOf(" ", start + LONGEST) + 1;
    if (end <= start) end = start + LONGEST;
    if (/[\ud800-\udbff]/.test(text[end - 1])) end++;
    parts.push({ ...paragraph, start, end });
    start = end;
  }
  parts.push({ ...paragraph, start });
  return parts;
}

/** Paragraphs in groups that are drawn together. */
export function sections(found) {
  const groups = [];
  let group = [];
  for (const paragraph of found) {
    if (group.length && paragraph.end - group[0].start > SECTION) { groups.push(group); group = []; }
    group.push(paragraph);
  }
  if (group.length) groups.push(group);
  return groups;
}

/**
 * Cut [start, end) at the borders of passages and words: pieces {start, end, passage, word}, without a gap. `passages`
 * are [start, end) in ascending order and do not overlap; `words` likewise.
 */
export function pieces(start, end, passages, words) {
  const cuts = new Set([start, end]);
  const inside = (list) => list.filter(([a, b]) => a < end && b > start);
  const near = inside(passages);
  const nearWords = near.length ? inside(words) : [];
  for (const [a, b] of [...near, ...nearWords]) {
    if (a > start) cuts.add(a);
    if (b < end) cuts.add(b);
  }
  const sorted = [...cuts].sort((a, b) => a - b);
  return sorted.slice(1).map((to, i) => {
    const from = sorted[i];
    const passage = near.find(([a, b]) => a <= from && to <= b);
    return {
      start: from,
      end: to,
      passage: passage ? passages.indexOf(passage) : -1,
      word: passage !== undefined && nearWords.some(([a, b]) => a <= from && to <= b),
    };
  });
}
