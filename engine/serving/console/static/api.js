// The server's JSON and its stream of decisions. If the server requires a token, it is kept in this
// tab's sessionStorage and sent in the Authorization header. There is no cookie that another site
// could use.

import { $ } from "./dom.js";

const KEY = "modelsat-token";
let pendingLogin = null;

export class ApiError extends Error {
  /** details: google.rpc details of the failure. */
  constructor(status, message, details = []) {
    super(message);
    this.status = status;
    this.details = details;
  }
}

/** Ask for a token; resolves once the user has entered one. */
function login(message) {
  pendingLogin ??= new Promise((resolve) => {
    const dialog = $("login");
    if (message) $("login-message").textContent = message;
    $("login-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("login-token").value.trim());
      $("login-token").value = "";
      dialog.close();
      pendingLogin = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
  });
  return pendingLogin;
}

async function failure(response) {
  const text = await response.text();
  try {
    const { message, details } = JSON.parse(text).error;
    return new ApiError(response.status, message, details);
  } catch {
    return new ApiError(response.status, text.trim() || `the server answered with status ${response.status}`);
  }
}

async function call(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const error = await failure(response);
    // A token that may read but not route is kept: everything else on the page works with it.
    const invalid = error.status === 401 || (error.status === 403 && options.method !== "POST");
    if (!invalid) throw error;
    if (sessionStorage.getItem(KEY) === token) sessionStorage.removeItem(KEY);
    await login(token ? error.message : "");
  }
}

export const get = async (path) => (await call(path)).json();

export const post = async (path, body, signal) =>
  (await call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  })).json();

/** Server-sent events of `path`, read until the connection ends. on: (event name, parsed data). */
export async function stream(path, on) {
  const reader = (await call(path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => {
        const at = line.indexOf(": ");
        return [line.slice(0, at), line.slice(at + 2)];
      }));
      if (fields.data) on(fields.event ?? "message", JSON.parse(fields.data));
    }
    on("alive", null);
  }
}
