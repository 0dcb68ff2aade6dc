// Before anything is drawn: the theme chosen here, else the system's.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = null;
    try { chosen = localStorage.getItem("autotune-theme"); } catch { /* no storage: the system's theme */ }
    document.documentElement.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
    document.documentElement.classList.add("scripted");
  };
  system.addEventListener("change", apply);
  apply();
})();
