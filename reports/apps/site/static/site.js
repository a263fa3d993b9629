// What every page shares: the theme button, explanations on hover and focus, state in the address, small helpers.
"use strict";
(() => {
  const PM = (window.PM = window.PM || {});
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

  PM.escape = (text) => String(text).replace(/[&<>"']/g, (character) => entities[character]);

  // an element with attributes and children; text becomes text, never markup
  PM.make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  };

  PM.text = (section, number) => section.texts[number];

  PM.state = () => new URLSearchParams(location.hash.slice(1));

  // changes: name to text, null to remove; the address changes without a new entry in the history
  PM.remember = (changes) => {
    const state = PM.state();
    for (const [name, value] of Object.entries(changes)) {
      if (value === null || value === undefined || value === "") state.delete(name);
      else state.set(name, value);
    }
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    document.dispatchEvent(new Event("remembered"));
  };

  // fills the section chooser and returns the section that the address names
  PM.chooseSection = (board, chosen) => {
    const select = document.getElementById("section");
    board.sections.forEach((section, number) => {
      const name = `${section.title} — ${section.rows.length} rows, group ${section.id.slice(0, 4)}`;
      select.append(PM.make("option", { value: String(number) }, name));
    });
    const wanted = board.sections.findIndex((section) => section.id === PM.state().get("s"));
    select.value = String(Math.max(0, wanted));
    select.closest(".picker").hidden = board.sections.length < 2 && select.closest(".picker").children.length < 4;
    select.addEventListener("change", () => chosen(board.sections[Number(select.value)]));
    return board.sections[Number(select.value)];
  };

  PM.number = (value, digits = 3) => {
    if (value === null || value === undefined) return "—";
    if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4)) return value.toExponential(digits - 1).replace("-", "−");
    return value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, 1) }).replace("-", "−");
  };

  PM.named = (column) => (column.unit ? `${column.label} (${column.unit})` : column.label);

  PM.rowName = (section, row) => {
    const [method, quantization] = [PM.text(section, row.method), PM.text(section, row.quantization)];
    const name = method === "none" ? "untrained base" : method;
    return quantization === "none" ? name : `${name} / ${quantization}`;
  };

  PM.rankText = (rank) => (rank === null ? "unranked" : rank[0] === rank[1] ? `rank ${rank[0]}` : `rank ${rank[0]}–${rank[1]}`);

  // --- theme button
  const button = document.getElementById("theme");
  const say = () => { button.textContent = document.documentElement.dataset.theme === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", PM.toggleTheme);
  document.addEventListener("theme", say);
  say();

  // --- explanations
  const tip = document.getElementById("tip");
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const at = target.getBoundingClientRect();
    const width = tip.offsetWidth;
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
    const above = at.bottom + tip.offsetHeight + 10 > innerHeight;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above ? at.top - tip.offsetHeight - 6 : at.bottom + 6) + scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const kind of ["mouseover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const target = event.target.closest?.("[data-tip]");
      if (target && target.dataset.tip) show(target); else hide();
    });
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true, capture: true });
})();
