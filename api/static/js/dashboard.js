// What the pages do beyond being read. Each page also works as it was served.
import { enhance, start } from "./pages.js";
import { watch } from "./connection.js";

const theme = document.getElementById("theme");
const root = document.documentElement;

function nameTheme() {
  theme.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Switch to the ${theme.textContent.toLowerCase()} theme`);
}

theme.addEventListener("click", () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("autotune-theme", root.dataset.theme); } catch { /* for this page alone, then */ }
  nameTheme();
  document.dispatchEvent(new Event("theme"));
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

nameTheme();
start();
enhance(document.getElementById("main"));
watch();
