// Files into the index: gathered from drops and inputs, sent a few at a time, followed until they are indexed.

import { ApiFailure, documentUrl, request } from "./api.js";
import { $, duration, el, number, plural, rate, toast } from "./dom.js";

const AT_ONCE = 3;
const TRIES = 4; // after which a server that cannot be reached is given up; one that is busy is asked for longer
const LISTED = 200;
const POLL_MS = 400;

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** [{name, file}] of a drop, folders with all that is in them. */
export async function dropped(transfer) {
  // Both must be asked for before the first wait: the drop is emptied then.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const plain = [...transfer.files].map((file) => ({ name: file.name, file }));
  if (!entries.length) return plain;
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

async function walk(entry, folder, found) {
  const name = `${folder}${entry.name}`;
  if (entry.name.startsWith(".")) return;
  if (entry.isFile) {
    found.push({ name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const child of some) await walk(child, `${name}/`, found);
  }
}

/** [{name, file}] of an input for files or a folder. */
export const chosen = (input) =>
  [...input.files]
    .map((file) => ({ name: file.webkitRelativePath || file.name, file }))
    .filter(({ name }) => !name.split("/").some((part) => part.startsWith(".")));

export class Uploads {
  /** `onIndexed()`: the index has changed. */
  constructor({ onIndexed }) {
    this.onIndexed = onIndexed;
    this.info = null;
    this.waiting = [];
    this.sending = 0;
    this.sent = 0;
    this.total = 0;
    this.failures = [];
    this.passedOver = [];
    this.following = false;
    $("indexing-close").onclick = () => { $("indexing").hidden = true; };
  }

  get busy() {
    return this.sending > 0 || this.waiting.length > 0;
  }

  /** Send files; those the index does not read are counted and left. */
  add(files) {
    if (!this.busy && !this.following) Object.assign(this, { total: 0, failures: [], passedOver: [] });
    const { suffixes, packings, max_upload_bytes: limit } = this.info;
    for (const { name, file } of files) {
      const lower = name.toLowerCase();
      const packing = packings.find((suffix) => lower.endsWith(suffix)) ?? "";
      const bare = lower.slice(0, lower.length - packing.length);
      if (!suffixes.some((suffix) => bare.endsWith(suffix))) this.passedOver.push(name);
      else if (file.size > limit) this.failures.push({ id: name, message: `The file has ${number(file.size)} bytes, the server takes ${number(limit)}.` });
      else { this.waiting.push({ name, file }); this.total++; }
    }
    if (!files.length) toast("There were no files in it.");
    while (this.sending < AT_ONCE && this.waiting.length) this.lane();
    this.show(null);
    this.follow();
  }

  async lane() {
    this.sending++;
    for (let next; (next = this.waiting.shift());) {
      try {
        await this.send(next);
      } catch (error) {
        // A file that was moved or may not be read fails in the browser.
        this.failures.push({ id: next.name, message: error instanceof ApiFailure ? error.message : `The browser cannot read it: ${error.message}` });
      }
      this.sent++;
    }
    this.sending--;
  }

  async send({ name, file }) {
    for (let tries = 1; ; tries++) {
      try {
        await request("PUT", documentUrl(name), { body: file });
        return;
      } catch (error) {
        const busy = error instanceof ApiFailure && error.status === 429;
        const lost = error instanceof ApiFailure && (error.status === 0 || error.status === 408 || error.status === 503);
        if (!busy && !(lost && tries < TRIES)) throw error;
        await pause(error.retryAfter ?? tries);
      }
    }
  }

  /** Show progress until all is indexed; with `mine` false only if there is something to follow. */
  async follow({ mine = true } = {}) {
    if (this.following) return;
    this.following = true;
    let done = -1;
    try {
      for (;;) {
        const { sent } = this;
        const progress = await request("GET", "/api/indexing");
        if (!mine && !progress.active && !this.total) return;
        this.show(progress);
        if (progress.done !== done) { if (done >= 0 || progress.done) this.onIndexed(); done = progress.done; }
        // An answer may be older than what was sent while it came.
        if (sent === this.sent && !this.busy && !progress.active) break;
        await pause(POLL_MS / 1000);
      }
    } catch (error) {
      if (!(error instanceof ApiFailure)) throw error;
      this.problem(error.message);
    } finally {
      this.following = false;
    }
  }

  problem(message) {
    $("indexing").hidden = false;
    $("indexing-title").textContent = "Progress is not known";
    $("indexing-rates").textContent = message;
    $("indexing-current").textContent = "";
  }

  show(progress) {
    const failures = [...this.failures, ...(progress?.failures ?? [])];
    const unsent = this.waiting.length + this.sending;
    const done = (progress?.done ?? 0);
    const all = done + (progress?.queued ?? 0) + (progress?.indexing ?? 0) + unsent;
    if (!all && !failures.length && !this.passedOver.length) return;
    $("indexing").hidden = false;
    const active = unsent > 0 || (progress?.active ?? true);
    const bar = $("indexing-bar");
    bar.hidden = !active;
    bar.max = Math.max(1, all);
    bar.value = done;
    const title = active ? `Indexing: ${number(done)} of ${plural(all, "document")}` : this.summary(progress);
    if ($("indexing-title").textContent !== title) $("indexing-title").textContent = title;
    const rates = [];
    if (progress?.tokens_per_second && progress.seconds > 0.5) {
      rates.push(`${rate(progress.documents_per_second)} documents/s`, `${rate(progress.tokens_per_second)} tokens/s`);
    }
    if (active && unsent) rates.push(`${number(unsent)} still to be sent`);
    else if (active && progress?.eta_seconds) rates.push(`about ${duration(progress.eta_seconds)} left`);
    if (!active && progress?.seconds > 0.5) rates.push(`${duration(progress.seconds)} in all`);
    $("indexing-rates").textContent = rates.join(" · ");
    $("indexing-current").textContent = active ? progress?.current ?? "" : this.left();
    this.showFailures(failures, (progress?.failed ?? 0) + this.failures.length);
    $("indexing").classList.toggle("done", !active);
  }

  summary({ added, replaced, unchanged, failed }) {
    const parts = [];
    if (added) parts.push(`${number(added)} added`);
    if (replaced) parts.push(`${number(replaced)} replaced`);
    if (unchanged) parts.push(`${number(unchanged)} unchanged`);
    if (failed + this.failures.length) parts.push(`${number(failed + this.failures.length)} failed`);
    return parts.length ? `Indexed: ${parts.join(", ")}` : "Nothing to index";
  }

  left() {
    const { passedOver } = this;
    return passedOver.length ? `${plural(passedOver.length, "file")} of other kinds left out, such as ${passedOver[0]}` : "";
  }

  showFailures(failures, n) {
    $("failures").hidden = !failures.length;
    $("failures-title").textContent = `${plural(n, "document")} failed`;
    const key = failures.length + (failures.at(-1)?.id ?? "");
    if (this.listed === key) return;
    this.listed = key;
    $("failures-list").replaceChildren(...failures.slice(-LISTED).map(({ id, message }) =>
      el("li", {}, el("strong", {}, id), ` ${message}`)));
  }
}
