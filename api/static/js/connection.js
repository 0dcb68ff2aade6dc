// Asking the service: with the token if it wants one, and saying so when it does not answer.
const KEY = "autotune-token";
const WATCH_MS = 5000;
const RETRY_MS = 1000;
const TRIES = 5;

let gone = false;
const failures = new Map(); // of a module's path: how often it did not come
let asking = null;

export async function ask(url, options = {}) {
  // As fetch. A service that is gone is announced, and the error goes on to the caller.
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(KEY);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name !== "AbortError") lost();
    throw error;
  }
  if (response.status === 401 || response.status === 403) {
    const entered = await newToken(await problemOf(response.clone()));
    if (entered) return ask(url, options);
  }
  return response;
}

export async function arrived(path, use) {
  // `use` a module of this folder. One that does not come is asked for again when the service is back and the page is
  // shown anew; by another name then, since a browser remembers a failed import for as long as the page lives. After
  // TRIES it is not the service's being away: the page stays as it is, with what was typed into it.
  let module;
  try {
    module = await import(failures.has(path) ? `${path}?${failures.get(path)}` : path);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // it came, and is wrong
    failures.set(path, (failures.get(path) ?? 0) + 1);
    if (failures.get(path) >= TRIES) throw error;
    lost();
    return;
  }
  use(module);
}

export async function problemOf(response) {
  // The one line of a problem document.
  try {
    return (await response.json()).detail ?? `status ${response.status}`;
  } catch {
    return `the service answered with status ${response.status}`;
  }
}

export async function stream(url, onEvent, signal) {
  // Server-sent events until `signal` aborts; comes back by itself. (EventSource cannot send a token.)
  while (!signal.aborted) {
    try {
      const response = await ask(url, { signal, headers: { Accept: "text/event-stream" } });
      if (!response.ok) throw new Error(await problemOf(response));
      await read(response.body.pipeThrough(new TextDecoderStream()).getReader(), onEvent);
    } catch (error) {
      if (signal.aborted) return;
    }
    if (!signal.aborted) await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

async function read(reader, onEvent) {
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
      if (fields.event) onEvent(fields.event, JSON.parse(fields.data));
    }
  }
}

function newToken(said) {
  // Whether one was entered. Several requests may find out at once: one dialog for all of them.
  asking ??= new Promise((done) => {
    const dialog = document.getElementById("token");
    dialog.querySelector("[role=alert]").textContent = said;
    dialog.addEventListener("close", () => {
      const entered = dialog.returnValue === "use";
      if (entered) sessionStorage.setItem(KEY, dialog.querySelector("input").value.trim());
      dialog.returnValue = "";
      asking = null;
      done(entered);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export function watch() {
  // A page that is only looked at finds out too. A proxy answers for a service that is away.
  const look = () => ask("/healthz").then((response) => { if (!response.ok) lost(); }).catch(() => {});
  setInterval(() => { if (!gone && !document.hidden) look(); }, WATCH_MS);
}

export function lost() {
  if (gone) return;
  gone = true;
  const banner = document.getElementById("connection");
  const since = new Date().toLocaleTimeString();
  banner.textContent = `The service does not answer. What you see is from ${since}; it is shown again as soon as it is back.`;
  banner.hidden = false;
  const retry = async () => {
    try {
      const response = await fetch("/healthz", { cache: "no-store" });
      if (!response.ok && response.status !== 401) throw new Error("not yet");
    } catch {
      setTimeout(retry, RETRY_MS);
      return;
    }
    gone = false;
    banner.hidden = true;
    document.dispatchEvent(new Event("back"));
  };
  setTimeout(retry, RETRY_MS);
}
