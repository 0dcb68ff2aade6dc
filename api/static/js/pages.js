// From one view to the next without loading everything anew: the server renders, this puts it in place.
import { ask, arrived, lost } from "./connection.js";

const TYPING_MS = 150;

let controller = new AbortController(); // of what the page in view started
let request = null;

export function start() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-nav]");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(link.href, { target: link.dataset.target, focus: link.dataset.target ? `#${link.id}` : "#main" });
  });
  document.addEventListener("click", (event) => {
    // Heard from the first moment on, though what answers is only loaded then.
    const button = event.target.closest("[data-show], [data-patch]");
    if (button) arrived("./lazy.js", (module) => module.press(button, controller.signal));
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("form[data-nav]")) return;
    event.preventDefault();
    filter(event.target);
  });
  let typing = 0;
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form[data-nav]");
    if (!form) return;
    clearTimeout(typing);
    typing = setTimeout(() => filter(form), event.target.matches("select") ? 0 : TYPING_MS);
  });
  addEventListener("popstate", () => go(location.href, { push: false }));
  document.addEventListener("back", () => go(location.href, { push: false, keep: true }));
}

export function enhance(part) {
  // What a piece of a page brings with it. Modules are loaded by the pages that need them.
  const signal = controller.signal;
  if (part.querySelector("[data-events], #tune")) arrived("./jobs.js", (module) => module.enhance(part, signal));
  if (part.querySelector("[data-chart]")) arrived("./charts.js", (module) => module.enhance(part, signal));
  if (part.querySelector("[data-load]")) arrived("./lazy.js", (module) => module.enhance(part, signal));
}

function filter(form) {
  // What is in the URL and not in the form (the order, the size of a page) stays.
  const asked = new URL(location.href);
  for (const [name, value] of new FormData(form)) {
    if (value) asked.searchParams.set(name, value);
    else asked.searchParams.delete(name);
  }
  asked.searchParams.delete("page");
  return go(asked.href, { target: form.dataset.target, replace: true });
}

export async function go(href, { target = null, focus = null, push = true, replace = false, keep = false } = {}) {
  // Show what is at `href`: all of it, or only the part `target` of it.
  request?.abort();
  request = new AbortController();
  const { signal } = request;
  document.body.classList.add("loading");
  let text;
  try {
    const response = await ask(href, { signal, headers: { Accept: "text/html" } });
    if (response.status >= 500) return lost();
    if (!response.headers.get("Content-Type")?.startsWith("text/html")) return location.assign(href);
    text = await response.text();
  } catch {
    return null; // aborted by a later one, or the service is gone, which the banner says
  } finally {
    if (!signal.aborted) document.body.classList.remove("loading");
  }
  const next = new DOMParser().parseFromString(text, "text/html");
  if (replace) history.replaceState(null, "", href);
  else if (push) history.pushState(null, "", href);
  document.title = next.title;
  if (target) swap(document.querySelector(target), next.querySelector(target));
  else whole(next, keep);
  if (focus) document.querySelector(focus)?.focus({ preventScroll: true });
  return null;
}

function whole(next, keep) {
  controller.abort();
  controller = new AbortController();
  const current = document.querySelector("header nav"), other = next.querySelector("header nav");
  current.replaceWith(document.adoptNode(other));
  swap(document.getElementById("main"), next.getElementById("main"));
  if (!keep) scrollTo(0, 0);
}

function swap(old, fresh) {
  const adopted = document.adoptNode(fresh);
  old.replaceWith(adopted);
  enhance(adopted);
}
