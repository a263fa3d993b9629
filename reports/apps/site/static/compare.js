// Rows of one section side by side: what differs in their settings, and every column against the first.
"use strict";
(() => {
  const PM = window.PM;
  const board = PM.board;
  const box = document.getElementById("comparison");
  if (!board || !board.sections.length) return;
  const add = document.getElementById("add");
  let section = null;
  let chosen = [];

  const keep = () => PM.remember({ s: section.id, rows: chosen.map((row) => row.id).join(",") });

  const tests = () => (PM.pairs || [])[board.sections.indexOf(section)] || {};

  // the test of a row against the first one, or null
  const test = (column, row) => {
    const found = tests()[column.key];
    const [at, base] = found ? [found.rows.indexOf(row.id), found.rows.indexOf(chosen[0].id)] : [-1, -1];
    if (at < 0 || base < 0 || at === base) return null;
    const [low, high] = [Math.min(at, base), Math.max(at, base)];
    const one = found.tests[low * found.rows.length - (low * (low + 1)) / 2 + high - low - 1];
    if (!one) return null;
    const [effect, from, to, p, smallest, checkpoint] = one;
    const ends = at < base ? [effect, from, to] : [-effect, -to, -from];
    return { ends, p, smallest, checkpoint };
  };

  const signed = (number) => `${number > 0 ? "+" : number < 0 ? "−" : ""}${Math.abs(number).toFixed(1)}`;

  const tested = (column, row) => {
    const found = test(column, row);
    if (!found) return null;
    const [effect, low, high] = found.ends.map((one) => signed(one * column.factor));
    const p = found.p < 1e-4 ? "p < 0.0001" : `p = ${PM.number(found.p, 2)}`;
    const unit = column.unit === "%" ? "points" : column.unit;
    const told = [found.p < 0.05 ? "Significantly different at 5 %, as one comparison." : "Not significantly different.", found.smallest === null ? "" : `Smallest effect found 8 times in 10: ${PM.number(found.smallest * column.factor, 3)} ${unit}.`, found.checkpoint ? "One seed each: it holds for these two checkpoints only." : ""];
    return PM.make("div", { class: "aside test" }, PM.make("button", { type: "button", class: "head", "data-tip": told.filter(Boolean).join(" ") }, `${effect} [${low}, ${high}] ${unit}, ${p}`));
  };

  const count = () => {
    const shown = board.columns.reduce((sum, column) => sum + chosen.slice(1).filter((row) => test(column, row)).length, 0);
    const most = Math.max(0, ...Object.values(tests()).map((one) => one.rows.length));
    const rows = section.rows.filter((row) => row.status === "ok").length;
    const pairs = (rows * (rows - 1)) / 2;
    const left = most && rows > most ? ` Tests of the first ${most} rows of the table are on this page; peft-matrix compare has all.` : "";
    const many = shown > 1 ? ` To judge them together at 5 %, ask for p below ${PM.number(0.05 / shown, 2)} (Bonferroni).` : "";
    return shown ? `${shown} comparison${shown > 1 ? "s" : ""} with the first column ${shown > 1 ? "have" : "has"} a p, not adjusted for the others.${many} Rows picked for their scores are picked out of ${pairs.toLocaleString("en-US")} pairs of this table; the ranks are adjusted for all of them.${left}` : `No pair shown here is tested.${left || " None has scored items in common."}`;
  };

  const difference = (column, value, first) => {
    if (!Array.isArray(value) || !Array.isArray(first) || value[0] === null || first[0] === null || value === first) return null;
    const change = (value[0] - first[0]) * column.factor;
    const ratio = first[0] > 0 && column.unit !== "%" ? `, ×${PM.number(value[0] / first[0])}` : "";
    return PM.make("div", { class: "aside" }, `${change > 0 ? "+" : ""}${PM.number(change, 4)}${ratio}`);
  };

  const line = (title, meaning, cells) => PM.make("tr", {}, PM.make("th", { scope: "row" }, meaning ? PM.make("button", { type: "button", class: "head", "data-tip": meaning }, title) : title), ...cells);

  const value = (column, at) => chosen.map((row) => {
    const place = row.values[at];
    if (!column.number) return PM.make("td", {}, PM.make("bdi", {}, PM.text(section, place)));
    if (!Array.isArray(place)) return PM.make("td", { class: "none" }, `— ${row.status === "ok" ? PM.text(section, place) : row.status}`);
    const aside = PM.text(section, place[2]);
    return PM.make("td", { class: "number" }, place[1], aside ? PM.make("span", { class: "aside" }, ` ${aside}`) : "", tested(column, row) || difference(column, place, chosen[0].values[at]));
  });

  const draw = () => {
    add.replaceChildren(PM.make("option", { value: "" }, "choose …"), ...section.rows.filter((row) => !chosen.includes(row)).slice(0, 2000).map((row) => PM.make("option", { value: row.id }, PM.rowName(section, row))));
    if (!chosen.length) { box.replaceChildren(PM.make("p", {}, "Choose rows above, or tick them on the board.")); document.getElementById("tests").textContent = ""; return; }
    const heads = chosen.map((row) => {
      const remove = PM.make("button", { type: "button", class: "note", "aria-label": `Remove ${PM.rowName(section, row)}` }, "×");
      remove.addEventListener("click", () => { chosen = chosen.filter((one) => one !== row); keep(); draw(); });
      const name = PM.make("bdi", {}, PM.rowName(section, row));
      return PM.make("th", { scope: "col" }, PM.make("a", { href: `rows/${row.page}.html` }, name), " ", remove);
    });
    const settings = section.settings.map((name, at) => [name, chosen.map((row) => PM.text(section, row.settings[at]))]).filter(([, texts]) => new Set(texts).size > 1);
    const group = (title) => PM.make("tr", { class: "group" }, PM.make("th", { scope: "colgroup", colspan: String(chosen.length + 1) }, title));
    document.getElementById("tests").textContent = count();
    box.replaceChildren(PM.make("table", { class: "comparison" }, PM.make("thead", {}, PM.make("tr", {}, PM.make("th", { scope: "col" }, "what"), ...heads)), PM.make("tbody", {},
      group("Results"),
      ...board.columns.map((column, at) => [column, at]).filter(([column]) => !["method", "quantization"].includes(column.key)).map(([column, at]) => line(column.unit ? `${column.label} (${column.unit})` : column.label, column.meaning, value(column, at))),
      line("notes", "", chosen.map((row) => PM.make("td", { class: "why" }, PM.make("bdi", {}, PM.text(section, row.notes) || "—")))),
      group(settings.length ? "Settings that differ" : "No setting differs"),
      ...settings.map(([name, texts]) => line(name, "", texts.map((text) => PM.make("td", {}, PM.make("bdi", {}, text))))))));
  };

  const open = (which) => {
    section = which;
    const ids = (PM.state().get("rows") || "").split(",");
    chosen = ids.map((id) => section.rows.find((row) => row.id === id)).filter(Boolean);
    if (!chosen.length) { // best against baseline
      const best = section.rows.find((row) => row.rank !== null && row.rank[0] === 1 && row.sound && !row.baseline);
      chosen = [section.rows.find((row) => row.baseline), best].filter(Boolean);
    }
    draw();
  };
  const first = PM.chooseSection(board, (which) => { PM.remember({ s: which.id, rows: null }); open(which); });
  add.addEventListener("change", () => {
    const row = section.rows.find((one) => one.id === add.value);
    if (row) { chosen.push(row); keep(); draw(); }
  });
  open(first);
})();
