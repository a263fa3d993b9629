"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;

  // theme: what the reader chose, else what the system says; kept for this page where storage is allowed
  const button = document.getElementById("theme");
  const remember = (value) => { try { localStorage.setItem("theme", value); } catch { /* file:// may refuse */ } };
  const recall = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  if (recall()) root.dataset.theme = recall();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remember(root.dataset.theme);
    label();
  });
  label();

  // one tooltip for everything that carries data-tip, by pointer and by keyboard
  const tip = document.getElementById("tip");
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const at = target.getBoundingClientRect();
    const below = at.bottom + 8 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const [on, off] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
    document.addEventListener(on, (event) => {
      const target = event.target.closest("[data-tip]");
      if (target) show(target);
    });
    document.addEventListener(off, hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, true);

  // sorting: best first, then the other way round; what is missing stays last
  const value = (row, index) => row.cells[index].dataset.sort ?? "";
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = (header) => {
    const table = header.closest("table");
    const index = header.cellIndex;
    const first = header.dataset.better === "higher" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = header.getAttribute("aria-sort") === first ? other : first;
    for (const one of all("th[aria-sort]", table)) one.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const rows = all("tbody > tr", table).map((row) => [value(row, index), row]);
    rows.sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : sign * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const header of all("table.board thead th")) {
    header.querySelector(".sort")?.addEventListener("click", () => sort(header));
  }

  // filter: every word must occur somewhere in the row; the address keeps it
  const box = document.getElementById("filter");
  if (!box) return;
  const frontOnly = document.getElementById("front-only");
  const rows = all("table.board tbody > tr").map((row) => [row, row.textContent.toLowerCase()]);
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0;
    for (const [row, text] of rows) {
      const stays = words.every((word) => text.includes(word)) && (!frontOnly.checked || row.classList.contains("front"));
      if (row.hidden === stays) row.hidden = !stays;
      kept += stays;
    }
    document.getElementById("count").textContent = `${kept} of ${rows.length} rows`;
    const state = new URLSearchParams();
    if (box.value) state.set("filter", box.value);
    if (frontOnly.checked) state.set("front", "1");
    const address = state.size ? `#${state}` : location.hash && "#";
    try { if (address) history.replaceState(null, "", address); } catch { /* a page from file:// may refuse */ }
  };
  const state = new URLSearchParams(location.hash.slice(1));
  box.value = state.get("filter") ?? "";
  frontOnly.checked = state.get("front") === "1";
  box.addEventListener("input", filter);
  frontOnly.addEventListener("change", filter);
  filter();
})();
