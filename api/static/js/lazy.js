// Parts of a page that take a while, or that only some want; and what a person decides about a winner.
import { ask, problemOf } from "./connection.js";
import { enhance as enhancePart, go } from "./pages.js";

export function enhance(part, signal) {
  for (const place of part.querySelectorAll("[data-load]")) load(place, place.dataset.load, signal);
}

export function press(button, signal) {
  // A button that shows something, or decides.
  if (button.dataset.show) reveal(button, signal);
  else decide(button);
}

async function load(place, url, signal, method = "GET") {
  // Whether it came.
  try {
    const response = await ask(url, { signal, method });
    if (!response.ok) throw new Error(await problemOf(response));
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    place.replaceChildren(...document.adoptNode(fresh.body).childNodes);
    enhancePart(place);
    return true;
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(note(error.message, "problem"));
    return false;
  }
}

async function reveal(button, signal) {
  const place = button.closest(".panel").querySelector(".shown");
  button.disabled = true;
  place.replaceChildren(note("Measuring…"));
  button.closest(".actions").hidden = await load(place, button.dataset.show, signal, "POST");
  button.disabled = false;
}

async function decide(button) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ state: button.dataset.state });
  try {
    const response = await ask(button.dataset.patch, { method: "PATCH", headers, body });
    if (!response.ok) throw new Error(await problemOf(response));
    await go(location.href, { push: false, keep: true });
  } catch (error) {
    button.after(note(error.message, "problem"));
  }
}

function note(text, kind = "note") {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text;
  return line;
}
