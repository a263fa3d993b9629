// Method × quantization: one quantity of one section, as a table with a tint.
"use strict";
(() => {
  const PM = window.PM;
  const board = PM.board;
  if (!board || !board.sections.length) return;
  const quantity = document.getElementById("quantity");
  board.columns.forEach((column, at) => {
    if (column.number) quantity.append(PM.make("option", { value: String(at) }, column.unit ? `${column.label} (${column.unit})` : column.label));
  });
  const named = board.columns.findIndex((column) => column.key === (PM.state().get("q") || board.sort));
  if (named >= 0) quantity.value = String(named);

  const tint = (value, least, most, better) => {
    if (value === null || most === least || better === "neither") return 0;
    const share = (value - least) / (most - least);
    return Math.round(100 * (better === "higher" ? share : 1 - share));
  };

  const place = (section, row, at, least, most) => {
    const column = board.columns[at];
    const value = row.values[at];
    const address = `rows/${row.page}.html`;
    if (!Array.isArray(value)) {
      const why = row.status === "ok" ? PM.text(section, value) : PM.text(section, row.why);
      const shown = row.status === "ok" ? "—" : row.status;
      return PM.make("td", { class: "none" }, PM.make("a", { href: address, "data-tip": why }, shown), PM.make("span", { class: "sr" }, ` ${why}`));
    }
    const cell = PM.make("td", { class: "number tint", style: `--share:${tint(value[0], least, most, column.better)}%` }, PM.make("a", { href: address }, value[1]));
    const aside = PM.text(section, value[2]);
    if (aside) cell.append(" ", PM.make("span", { class: "aside" }, aside));
    return cell;
  };

  // the tint: the lowest value on the left, the highest on the right, stronger is better
  const legend = (column, section, at, least, most) => {
    const scale = document.getElementById("scale");
    scale.hidden = column.better === "neither" || !(most > least);
    if (scale.hidden) return;
    const shown = (wanted) => `${section.rows.map((row) => row.values[at]).find((value) => Array.isArray(value) && value[0] === wanted)[1]}${column.unit ? ` ${column.unit}` : ""}`;
    scale.replaceChildren("Colour, stronger is better: ", shown(least), PM.make("span", { class: `scale${column.better === "lower" ? " down" : ""}`, "aria-hidden": "true" }), shown(most));
  };

  const draw = (section) => {
    const at = Number(quantity.value);
    const names = (key) => [...new Set(section.rows.map((row) => PM.text(section, row[key])))].sort((a, b) => (a === "none" ? -1 : b === "none" ? 1 : a.localeCompare(b)));
    const [methods, quantizations] = [names("method"), names("quantization")];
    const values = section.rows.map((row) => row.values[at]).filter((value) => Array.isArray(value) && value[0] !== null).map((value) => value[0]);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const by = new Map(section.rows.map((row) => [`${row.method} ${row.quantization}`, row]));
    const number = (text) => section.texts.indexOf(text);
    const head = PM.make("tr", {}, PM.make("th", { scope: "col" }, "method"), ...quantizations.map((name) => PM.make("th", { scope: "col", class: "number" }, PM.make("bdi", {}, name))));
    const body = methods.map((method) => PM.make("tr", {}, PM.make("th", { scope: "row" }, PM.make("bdi", {}, method)),
      ...quantizations.map((quantization) => {
        const row = by.get(`${number(method)} ${number(quantization)}`);
        return row ? place(section, row, at, least, most) : PM.make("td", { class: "none" }, PM.make("span", { "data-tip": "not planned" }, "·"), PM.make("span", { class: "sr" }, " not planned"));
      })));
    document.getElementById("matrix").replaceChildren(PM.make("table", { class: "matrix" }, PM.make("thead", {}, head), PM.make("tbody", {}, ...body)));
    legend(board.columns[at], section, at, least, most);
    document.getElementById("meaning").textContent = board.columns[at].meaning;
  };
  let section = PM.chooseSection(board, (chosen) => { section = chosen; PM.remember({ s: chosen.id }); draw(chosen); });
  quantity.addEventListener("change", () => { PM.remember({ q: board.columns[Number(quantity.value)].key }); draw(section); });
  draw(section);
})();
