// Light or dark before the first paint: what the reader chose last, else what the system prefers.
"use strict";
(() => {
  const root = document.documentElement;
  let chosen = null;
  try { chosen = localStorage.getItem("peft-matrix-theme"); } catch { /* storage may be closed to local files */ }
  const system = matchMedia("(prefers-color-scheme: dark)");
  const set = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    root.classList.toggle("dark", dark); // the grid's own switch
  };
  set(chosen ? chosen === "dark" : system.matches);
  system.addEventListener("change", () => {
    if (chosen === null) { set(system.matches); document.dispatchEvent(new Event("theme")); }
  });
  (window.PM = window.PM || {}).toggleTheme = () => {
    set(root.dataset.theme !== "dark");
    chosen = root.dataset.theme;
    try { localStorage.setItem("peft-matrix-theme", chosen); } catch { /* then the choice lasts for this page */ }
    document.dispatchEvent(new Event("theme"));
  };
})();
