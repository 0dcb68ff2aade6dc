// Jobs as they go, and the form that starts one.
import { ask, problemOf, stream } from "./connection.js";

const TYPING_MS = 200;
const SLOW_MS = 500;

export function enhance(part, signal) {
  const list = part.querySelector("[data-events]");
  if (list) {
    stream(list.dataset.events, (name, html) => { if (name === "jobs") show(list, html); }, signal);
    list.addEventListener("click", act);
  }
  const form = part.querySelector("#tune");
  if (form) checkWhileTyping(form, signal);
}

function show(list, html) {
  // Whoever has the focus keeps it, and what was opened stays open.
  const focused = list.contains(document.activeElement) ? document.activeElement.id : "";
  const open = [...list.querySelectorAll("details[open]")].map((item) => item.id);
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const id of open) fresh.getElementById(id)?.setAttribute("open", "");
  list.replaceChildren(...document.adoptNode(fresh.body).childNodes);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function act(event) {
  // Cancel a job, or try one again. What comes of it arrives with the next event.
  const button = event.target.closest("[data-delete], [data-post]");
  if (!button) return;
  const { delete: cancelled, post } = button.dataset;
  button.disabled = true;
  try {
    const response = await ask(cancelled ?? post, { method: cancelled ? "DELETE" : "POST" });
    if (!response.ok) throw new Error(await problemOf(response));
  } catch (error) {
    button.disabled = false;
    button.after(said(error.message));
  }
}

function checkWhileTyping(form, signal) {
  const button = form.querySelector("button");
  const verdict = form.querySelector("#verdict");
  const touched = new Set(new FormData(form).get("input") ? ["input", "weight"] : []);
  let timer = 0, latest = 0, body = null;

  const check = async () => {
    const mine = ++latest;
    const slow = setTimeout(() => verdict.replaceChildren(said("Asking the device…", "")), SLOW_MS);
    const asked = `${form.dataset.check}?${new URLSearchParams(new FormData(form))}`;
    const answer = await ask(asked, { signal }).then((response) => response.json()).finally(() => clearTimeout(slow));
    if (mine !== latest) return; // typed on meanwhile
    body = answer.body ?? null;
    button.disabled = !body;
    mark(form, answer, touched);
    verdict.replaceChildren(...(answer.says ?? []).map((text) => said(text, "")), ...known(answer.known));
  };
  const soon = (delay) => {
    clearTimeout(timer);
    timer = setTimeout(() => check().catch(() => {}), delay);
  };

  form.addEventListener("input", (event) => {
    touched.add(event.target.name);
    body = null; // until the answer to what stands there now
    soon(TYPING_MS);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      if (!body) await check();
      if (!body) return;
      button.disabled = true;
      const headers = { "Content-Type": "application/json" };
      const response = await ask("/tune", { method: "POST", headers, body: JSON.stringify(body) });
      if (!response.ok) throw new Error(await problemOf(response));
      verdict.replaceChildren(said("Queued: see the list of jobs.", ""));
    } catch (error) {
      verdict.replaceChildren(said(error.message));
    } finally {
      button.disabled = false;
    }
  });
  document.addEventListener("back", () => soon(0), { signal });
  fillDevices(form.querySelector("datalist"), signal).catch(() => {});
  soon(0);
}

function mark(form, answer, touched) {
  for (const field of form.querySelectorAll("[name]")) {
    const note = document.getElementById(`tune-${field.name}-said`);
    const wrong = answer.problem && answer.field === field.name && touched.has(field.name);
    if (wrong) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
    note.textContent = wrong ? answer.problem : note.dataset.hint;
    note.classList.toggle("wrong", Boolean(wrong));
  }
}

function known(winner) {
  if (!winner) return [];
  const line = said("", ""), link = document.createElement("a");
  link.href = winner.href;
  link.dataset.nav = "";
  link.textContent = winner.text;
  line.append("Known already: ", link);
  return [line];
}

function said(text, kind = "problem") {
  const line = document.createElement("p");
  line.textContent = text;
  if (kind) line.className = kind;
  return line;
}

async function fillDevices(list, signal) {
  const answer = await ask("/devices", { signal }).then((response) => response.json());
  for (const { device } of answer.devices ?? []) list.append(new Option(device, device));
}
