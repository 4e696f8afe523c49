// Requests to the server, with the key if it asks for one.

import { $ } from "./dom.js";

const KEY = "m2rag-api-key";

export class ApiFailure extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

let asking = null;

/** Ask the reader for a key; requests that fail together ask once. */
function askForKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-text").textContent = message;
    $("key").value = "";
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("key").value.trim());
      dialog.close();
    };
    dialog.addEventListener("close", () => { asking = null; resolve(); }, { once: true });
    dialog.showModal();
  });
  return asking;
}

/** The JSON answer to a request; `body` is sent as it is, `json` as JSON. Raises ApiFailure. */
export async function request(method, path, { json, body, signal } = {}) {
  for (;;) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    else if (body !== undefined) headers["Content-Type"] = "application/octet-stream";
    let response;
    try {
      response = await fetch(path, { method, headers, body: json !== undefined ? JSON.stringify(json) : body, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiFailure("The server cannot be reached. Is it running?");
    }
    const answer = await response.json().catch((error) => {
      if (error.name === "AbortError") throw error;
      return null; // cut off, or not from this server
    });
    if (response.ok && answer !== null) return answer;
    const told = answer?.error?.message ?? `The server answered ${response.status}.`;
    if (response.status === 401) {
      // A key that another request was given meanwhile is tried first.
      if (sessionStorage.getItem(KEY) === key) await askForKey(key ? "The key was not accepted." : "You get it from whoever runs the server.");
      if (sessionStorage.getItem(KEY) === key) throw new ApiFailure(told, { status: 401 });
      continue;
    }
    const wait = Number(response.headers.get("Retry-After"));
    throw new ApiFailure(told, {
      status: response.status,
      code: answer?.error?.code ?? null,
      retryAfter: Number.isFinite(wait) && wait > 0 ? wait : null,
    });
  }
}

export const documentUrl = (id) => `/api/documents/${encodeURIComponent(id)}`;
