// The board page: controls, recommendation, front and table of one section, and its state in the address.
"use strict";
(() => {
  const PM = window.PM;
  const board = PM.board;
  if (!board || !board.sections.length) return;
  PM.picked = new Set();
  const search = document.getElementById("search");
  const frontOnly = document.getElementById("front-only");
  const compare = document.getElementById("compare");
  let waiting = 0;

  const after = (work) => { // at most once a frame
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(work);
  };

  const status = () => {
    const info = PM.grid.page.info();
    document.getElementById("count").textContent = `${info.recordsDisplay.toLocaleString("en-US")} of ${info.recordsTotal.toLocaleString("en-US")} rows`;
    compare.disabled = PM.picked.size < 2;
    compare.textContent = PM.picked.size ? `Compare ${PM.picked.size}` : "Compare";
  };

  // --- the front
  const point = (section, row, number) => {
    const axis = section.axes[number];
    return (row.axes[number][0] ?? NaN) * axis.factor;
  };
  const bars = (section, rows, number, colour) => {
    const factor = section.axes[number].factor;
    const gap = (row, end) => {
      const [value, low, high, sd] = row.axes[number];
      const edge = end === "low" ? low : high;
      return (edge !== null ? Math.abs(value - edge) : sd ?? 0) * factor;
    };
    return { type: "data", symmetric: false, color: colour, thickness: 1, width: 0,
      array: rows.map((row) => gap(row, "high")), arrayminus: rows.map((row) => gap(row, "low")) };
  };
  const trace = (section, rows, label, colour, symbol, size, opacity, fine) => ({
    type: rows.length > 2000 ? "scattergl" : "scatter", mode: "markers", name: label, opacity,
    x: rows.map((row) => point(section, row, 1)), y: rows.map((row) => point(section, row, 0)),
    customdata: rows.map((row) => row.cells[0]?.[1] ?? ""),
    ...(fine ? { error_x: bars(section, rows, 1, colour), error_y: bars(section, rows, 0, colour) } : {}),
    marker: { color: colour, size, symbol, line: { width: symbol.includes("open") ? 1.2 : 0 } },
    text: rows.map((row) => `<b>${PM.escape(PM.rowName(section, row))}</b><br>${PM.rankText(row.rank)}`),
    hovertemplate: `%{text}<br>%{y:.4~g} ${PM.escape(section.axes[0].unit)} · %{x:.4~g} ${PM.escape(section.axes[1].unit)}<extra></extra>`,
  });

  const drawFront = (section) => {
    const element = document.getElementById("front");
    const caption = document.getElementById("front-caption");
    if (section.axes.length < 2) {
      element.hidden = true;
      caption.textContent = "No front: this table lacks values on one of the board's axes.";
      return;
    }
    element.hidden = false;
    const rows = section.rows.filter((row) => row.axes.every((axis) => axis[0] !== null));
    const fits = (row) => PM.meets(row) === true || !Object.keys(PM.limits).length;
    const parts = { front: rows.filter((row) => row.front && fits(row)), rest: rows.filter((row) => !row.front && fits(row)), out: rows.filter((row) => !fits(row)) };
    const fine = rows.length <= 400;
    const chosen = parts.front.concat(parts.rest).filter((row) => row.id === PM.advised[0]);
    PM.plot(element, () => ({
      x: `${section.axes[1].label} (${section.axes[1].unit})`, y: `${section.axes[0].label} (${section.axes[0].unit})`, legend: true,
      traces: [
        trace(section, parts.out, "beyond your limits", PM.ink("faint"), "circle-open", 6, 0.5, false),
        trace(section, parts.rest, "other rows", PM.ink("mark"), "circle", 7, 0.75, fine),
        trace(section, parts.front, "on the front", PM.ink("accent"), "diamond", 10, 1, fine),
        trace(section, chosen, "recommended", PM.ink("accent"), "circle-open", 20, 1, false),
      ].filter((one) => one.x.length),
    }));
    element.removeAllListeners?.("plotly_click");
    element.on("plotly_click", (event) => { const page = event.points[0].customdata; if (page) location.href = `cells/${page}.html`; });
    caption.textContent = `Bars: 95 % interval where there is one, else one standard deviation over seeds. Click a mark for its cell. ${fine ? "" : "Bars are left out above 400 rows. "}The table has every value.`;
  };

  // --- everything together
  const refresh = () => {
    PM.advise(PM.section);
    drawFront(PM.section);
    PM.grid?.draw();
  };

  const show = (section) => {
    PM.section = section;
    PM.picked.clear();
    document.getElementById("conditions").replaceChildren(...[["table", section.title], ...section.conditions].map(([name, text]) =>
      PM.make("div", {}, PM.make("dt", {}, name), PM.make("dd", {}, PM.make("bdi", {}, text)))));
    document.getElementById("caption").textContent = section.caption;
    PM.showLimits(section);
    PM.advise(section);
    PM.drawGrid(section, status);
    requestAnimationFrame(() => drawFront(section));
  };

  const first = PM.chooseSection(board, (section) => {
    PM.remember({ s: section.id, f: null });
    show(section);
  });
  PM.setUpButtons();
  PM.setUpWeights(() => { PM.rememberWeights(); PM.advise(PM.section); PM.remember({ order: Object.values(PM.weights).some(Boolean) ? "score desc" : null }); PM.drawGrid(PM.section, status); drawFront(PM.section); });
  PM.setUpLimits(() => { PM.rememberLimits(); after(refresh); });
  search.value = PM.state().get("q") || "";
  frontOnly.checked = PM.state().get("front") === "1";
  search.addEventListener("input", () => { PM.remember({ q: search.value }); PM.grid.search(search.value).draw(); });
  frontOnly.addEventListener("change", () => { PM.remember({ front: frontOnly.checked ? "1" : null }); PM.grid.draw(); });
  compare.addEventListener("click", () => { location.href = `compare.html#s=${PM.section.id}&rows=${[...PM.picked].join(",")}`; });
  show(first);
  addEventListener("hashchange", () => location.reload()); // a link into this very page
})();
