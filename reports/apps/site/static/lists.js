// Filters over the failures and the claims, and the search over all boards.
"use strict";
(() => {
  const PM = window.PM;
  const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

  const needle = document.getElementById("needle");
  if (needle) {
    const entries = [...document.querySelectorAll("[data-entry]")].map((element) => ({ element, text: element.textContent.toLowerCase() }));
    const chips = [...document.querySelectorAll("[data-chip]")];
    const filter = () => {
      const wanted = words(needle.value);
      const pressed = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.chip);
      let shown = 0;
      entries.forEach(({ element, text }) => {
        const keep = wanted.every((word) => text.includes(word)) && (!pressed.length || pressed.includes(element.dataset.entry));
        element.hidden = !keep;
        shown += keep;
      });
      document.querySelectorAll("[data-group]").forEach((group) => { group.hidden = ![...group.querySelectorAll("[data-entry]")].some((one) => !one.hidden); });
      document.getElementById("count").textContent = `${shown.toLocaleString("en-US")} of ${entries.length.toLocaleString("en-US")}`;
    };
    needle.value = PM.state().get("q") || "";
    const wanted = (PM.state().get("v") || "").split("|");
    chips.forEach((chip) => {
      if (wanted.includes(chip.dataset.chip)) chip.setAttribute("aria-pressed", "true");
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
        PM.remember({ v: chips.filter((one) => one.getAttribute("aria-pressed") === "true").map((one) => one.dataset.chip).join("|") });
        filter();
      });
    });
    needle.addEventListener("input", () => { PM.remember({ q: needle.value }); filter(); });
    filter();
  }

  const search = document.getElementById("everything");
  if (search && PM.search) {
    const MOST = 50;
    const entries = PM.search.map((entry) => ({ entry, text: entry.slice(0, 5).join(" ").toLowerCase() }));
    const found = document.getElementById("found");
    const draw = () => {
      const wanted = words(search.value);
      const hits = wanted.length ? entries.filter(({ text }) => wanted.every((word) => text.includes(word))) : [];
      document.getElementById("found-count").textContent = wanted.length ? `${hits.length.toLocaleString("en-US")} rows${hits.length > MOST ? `, the first ${MOST} shown` : ""}` : "";
      found.hidden = !hits.length;
      found.tBodies[0].replaceChildren(...hits.slice(0, MOST).map(({ entry: [board, table, method, quantization, status, score, rank, page, methodPage] }) => PM.make("tr", {},
        PM.make("th", { scope: "row" }, PM.make("a", { href: page }, PM.make("bdi", {}, quantization === "none" ? method : `${method} / ${quantization}`))),
        PM.make("td", { class: "number" }, score || "—"), PM.make("td", { class: "number" }, rank), PM.make("td", {}, status),
        PM.make("td", {}, PM.make("bdi", {}, table)), PM.make("td", {}, PM.make("bdi", {}, board)),
        PM.make("td", {}, PM.make("a", { href: methodPage }, "all boards with it")))));
    };
    search.value = PM.state().get("q") || "";
    search.addEventListener("input", () => { PM.remember({ q: search.value }); draw(); });
    draw();
  }
})();
