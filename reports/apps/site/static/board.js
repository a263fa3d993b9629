// The board page: controls, recommendation, front and table of one section, and its state in the address.
"use strict";
(() => {
  const PM = window.PM;
  const board = PM.board;
  if (!board || !board.sections.length) return;
  const MOST_POINTS = 1500;
  const MOST_NAMES = 14;
  const FEW_ROWS = 60;
  const VERDICTS = ["learned", "no evidence", "worse", "degenerate"];
  const DEFAULT = 8;
  const HIDDEN_CONDITIONS = ["protocol", "task version", "measured", "peft-matrix"]; // on the page About
  PM.picked = new Set();
  const search = document.getElementById("search");
  const frontOnly = document.getElementById("front-only");
  const compare = document.getElementById("compare");
  const colourBy = document.getElementById("colour-by");
  const across = document.getElementById("across");
  const weights = {};
  const facets = new Map(); // name of a facet to the values that are pressed
  let hiddenNames = new Set();
  let waiting = 0;
  const after = (work) => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(work); }; // at most once a frame

  // --- weights
  PM.scores = (section) => {
    const used = board.columns.map((column, at) => [column, at]).filter(([column]) => weights[column.key]);
    if (!used.length) return null;
    const scores = new Map();
    for (const row of section.rows) {
      let sum = 0;
      for (const [column, at] of used) {
        const place = row.values[at];
        const value = Array.isArray(place) ? place[0] : null;
        sum += value > 0 ? weights[column.key] * (column.better === "higher" ? 1 : -1) * Math.log2(value) : NaN;
      }
      if (Number.isFinite(sum)) scores.set(row.id, sum);
    }
    return scores;
  };
  const setUpWeights = (changed) => {
    const saved = Object.fromEntries((PM.state().get("w") || "").split(",").map((part) => part.split(":")).filter((part) => part.length === 2));
    const list = document.getElementById("weight-list");
    const sliders = new Map();
    for (const column of board.columns.filter((one) => one.weighable)) {
      const id = `weight-${column.key}`;
      const slider = PM.make("input", { id, type: "range", min: "0", max: "3", step: "0.5", value: saved[column.key] || "0" });
      const shown = PM.make("output", { for: id }, slider.value);
      const read = () => { shown.textContent = slider.value; weights[column.key] = Number(slider.value); };
      slider.addEventListener("input", () => { read(); changed(); });
      sliders.set(column.key, { slider, read });
      read();
      list.append(PM.make("div", { class: "weight" }, PM.make("label", { for: id }, `${column.label} (${column.better})`), slider, shown));
    }
    const set = (wanted) => { sliders.forEach(({ slider, read }, key) => { slider.value = String(wanted[key] || 0); read(); }); changed(); };
    const memory = board.columns.find((column) => column.weighable && /rss_growth|reserved|allocated|peak_rss/.test(column.key))?.key;
    const presets = { "most accurate": { [board.rank]: 1 }, cheapest: { [board.rank]: 3, step_ms: 0.5, ...(memory ? { [memory]: 0.5 } : {}) }, "forgets least": { [board.rank]: 1, retained_accuracy: 1 } };
    for (const [name, wanted] of Object.entries(presets)) {
      if (!Object.keys(wanted).every((key) => sliders.has(key))) continue;
      const button = PM.make("button", { type: "button" }, name);
      button.addEventListener("click", () => set(wanted));
      document.getElementById("presets").append(button);
    }
    document.getElementById("weights-off").addEventListener("click", () => set({}));
    document.getElementById("weights").open = Object.values(weights).some(Boolean);
  };

  // --- columns of the table
  const nameOf = (section) => (row) => {
    const text = PM.text(section, row.method);
    const chips = row.marks.map((mark) => `<span class="chip warn">${PM.escape(PM.text(section, mark))}</span>`);
    if (row.baseline) chips.unshift('<span class="chip">baseline</span>');
    if (row.status !== "ok") chips.unshift(`<span class="chip warn">${PM.escape(row.status)}</span>`);
    if (row.forgets) chips.push('<span class="chip warn">forgets</span>');
    const note = [PM.text(section, row.notes), PM.text(section, row.why), ...row.cautions.map((at) => PM.text(section, at))].filter(Boolean).join("; ");
    const more = note ? ` <button type="button" class="note" data-tip="${PM.escape(note)}" aria-label="Note: ${PM.escape(note)}">i</button>` : "";
    const pick = `<input type="checkbox" class="picked" value="${PM.escape(row.id)}" aria-label="Compare ${PM.escape(PM.rowName(section, row))}"${PM.picked.has(row.id) ? " checked" : ""}>`;
    const front = row.front ? ' <span class="flag" role="img" aria-label="On the Pareto front" data-tip="On the Pareto front: no other row is clearly better on one axis without being worse on another.">◆</span>' : "";
    return `${pick} <a href="rows/${encodeURIComponent(row.page)}.html"><bdi>${PM.escape(text)}</bdi></a>${front} ${chips.join(" ")}${more}`;
  };
  const field = (section, at) => (row) => `<bdi>${PM.escape(PM.text(section, row.values[at]))}</bdi>`;
  const number = (section, at) => (row) => {
    const place = row.values[at];
    if (!Array.isArray(place)) {
      const why = PM.escape(PM.text(section, place));
      return `<span class="none" data-tip="${why}">—<span class="sr"> ${why}</span></span>`;
    }
    const [, main, aside, hint] = place;
    const lighter = PM.text(section, aside) ? ` <span class="aside">${PM.escape(PM.text(section, aside))}</span>` : "";
    const tip = PM.text(section, hint) ? ` data-tip="${PM.escape(PM.text(section, hint))}"` : "";
    return `<span${tip}>${PM.escape(main)}${lighter}</span>`;
  };
  const columnsOf = (section, scores) => {
    const found = board.columns.map((column, at) => ({
      key: column.key, title: column.label, unit: column.unit, tip: column.meaning, number: column.number, descends: column.better === "higher",
      className: column.key === "method" ? "method" : column.key === board.rank ? "number score" : column.key === "rank" ? "number rank" : column.number ? "number" : "name",
      sort: column.key === "rank" ? (row) => (row.rank === null ? null : row.rank[0] + row.rank[1] / 1e6)
        : column.number ? (row) => (Array.isArray(row.values[at]) ? row.values[at][0] : null) : (row) => PM.text(section, row.values[at]),
      html: column.key === "method" ? nameOf(section) : column.number ? number(section, at) : field(section, at),
    }));
    const weighed = { key: "weighed", title: "your score", number: true, descends: true, tip: "Your weighted score; see above. Higher is better.", sort: (row) => scores?.get(row.id) ?? null, html: (row) => (scores?.has(row.id) ? PM.number(2 ** scores.get(row.id)) : "—") };
    return scores ? [...found, weighed] : found;
  };
  // method and score first: they stay in place, and a phone shows them
  const arranged = (keys) => [...["method", board.rank].filter((key) => keys.includes(key)), ...keys.filter((key) => !["method", board.rank].includes(key))];
  const hasValues = (section, at) => section.rows.some((row) => (board.columns[at].number ? Array.isArray(row.values[at]) : PM.text(section, row.values[at]) !== "—"));
  const defaults = (section) => {
    const memory = Object.values(section.limits).map((one) => one.column).filter(Boolean);
    const wanted = ["method", board.rank, "rank", "quantization", "learned", "retained_accuracy", ...memory.slice(0, 1), "step_ms", ...memory.slice(1), "latency_ms", "tpot_ms", "trainable_parameters", "adapter_bytes", "seeds", "status"];
    const keys = board.columns.map((column) => column.key);
    return [...new Set(wanted)].filter((key) => keys.includes(key) && hasValues(section, keys.indexOf(key))).slice(0, DEFAULT);
  };
  const visibleOf = (section) => {
    const said = (PM.state().get("show") || "").split(",").filter((key) => board.columns.some((column) => column.key === key));
    return arranged(said.length ? [...new Set(["method", ...said])] : defaults(section));
  };

  // --- CSV of the current view: no cell of it is a formula to a spreadsheet
  const neutral = (text) => (/^\s*[=+\-@|%\t\r\n]/.test(text) ? `'${text}` : text);
  const quote = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  PM.csv = () => {
    const shown = PM.grid.visible.map((key) => board.columns.findIndex((column) => column.key === key)).filter((at) => at >= 0);
    const lines = [shown.map((at) => board.columns[at]).map((column) => quote(neutral(column.unit ? `${column.label} [${column.unit}]` : column.label))).join(",")];
    PM.grid.shown.forEach((row) => lines.push(shown.map((at) => {
      const place = row.values[at];
      if (board.columns[at].number) return Array.isArray(place) && place[0] !== null ? String(place[0] * board.columns[at].factor) : "";
      return quote(neutral(PM.text(PM.section, place)));
    }).join(",")));
    return `${lines.join("\r\n")}\r\n`;
  };
  const download = () => {
    const address = URL.createObjectURL(new Blob(["\ufeff", PM.csv()], { type: "text/csv" }));
    PM.make("a", { href: address, download: "board.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };

  // --- filters: chips by kind of method, quantization, verdict and status
  const FACETS = { family: "kind of method", quantization: "quantization", learned: "learned", status: "status" };
  const facetOf = (section, name) => {
    const at = board.columns.findIndex((column) => column.key === name);
    if (name === "family") return (row) => PM.text(section, row.family);
    if (name === "status") return (row) => row.status;
    if (name === "quantization") return (row) => PM.text(section, row.quantization);
    return at < 0 ? null : (row) => PM.text(section, row.values[at]);
  };
  const setUpFacets = (section) => {
    const box = document.getElementById("facets");
    box.replaceChildren();
    let saved = {};
    try { saved = JSON.parse(PM.state().get("f") || "{}"); } catch { saved = {}; }
    facets.clear();
    for (const [name, title] of Object.entries(FACETS)) {
      const read = facetOf(section, name);
      const counts = new Map();
      if (read) section.rows.forEach((row) => counts.set(read(row), (counts.get(read(row)) || 0) + 1));
      counts.delete("");
      if (counts.size < 2) continue;
      const pressed = new Set((Array.isArray(saved[name]) ? saved[name] : []).filter((value) => counts.has(value)));
      facets.set(name, { read, pressed });
      box.append(PM.make("div", { class: "facet", role: "group", "aria-label": title }, PM.make("span", { class: "soft small" }, title), ...[...counts].sort((a, b) => b[1] - a[1]).map(([value, count]) => {
        const chip = PM.make("button", { type: "button", class: "chip press", "data-facet": name, "data-value": value, "aria-pressed": String(pressed.has(value)) }, PM.make("bdi", {}, value), ` ${count}`);
        chip.addEventListener("click", () => {
          if (!pressed.delete(value)) pressed.add(value);
          chip.setAttribute("aria-pressed", String(pressed.has(value)));
          const state = Object.fromEntries([...facets].filter(([, one]) => one.pressed.size).map(([key, one]) => [key, [...one.pressed]]));
          PM.remember({ f: Object.keys(state).length ? JSON.stringify(state) : null });
          PM.grid.draw();
          drawFront(PM.section);
        });
        return chip;
      })));
    }
  };
  let haystack = new Map();
  const keepFacets = (row) => [...facets.values()].every(({ read, pressed }) => !pressed.size || pressed.has(read(row)));
  const filterOf = (section) => {
    haystack = new Map(section.rows.map((row) => [row, [row.method, row.quantization, row.family, ...row.marks, ...row.values.filter((value) => !Array.isArray(value))].map((at) => PM.text(section, at)).concat(row.status).join(" ").toLowerCase()]));
    return (row) => {
      if (Object.keys(PM.limits).length && PM.meets(row) !== true) return false;
      if (frontOnly.checked && !row.front) return false;
      if (hiddenNames.size && hiddenNames.has(groupOf(section, row))) return false;
      return keepFacets(row) && PM.words.every((word) => haystack.get(row).includes(word));
    };
  };
  PM.words = [];
  const readWords = () => { PM.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); };

  const drawGrid = (section) => {
    const scores = PM.scores(section);
    const [name, direction] = (PM.state().get("order") || "").split(" ");
    const leaders = section.rows.filter((row) => row.rank !== null && row.rank[0] === 1).length;
    PM.grid = PM.table(document.getElementById("grid"), {
      columns: columnsOf(section, scores), rows: section.rows, visible: scores ? [...visibleOf(section), "weighed"] : visibleOf(section), keep: filterOf(section), label: section.title, className: "rows",
      order: scores ? ["weighed", "desc"] : name ? [name, direction === "desc" ? "desc" : "asc"] : null,
      rowClass: (row) => [row.status !== "ok" ? "failed" : "", row.baseline ? "baseline" : "", row.rank !== null && row.rank[0] === 1 ? "leading" : ""].join(" "),
      band: section.rows.some((row) => row.rank !== null) ? (row) => (row.rank === null ? 2 : row.rank[0] === 1 ? 0 : 1) : null,
      bandTitle: (band, count) => [leaders > 1 ? `${leaders} rows tie for first: no one of them is known to be better${count < leaders ? ` (${count} shown)` : ""}` : "first", `${count} ranked below`, `${count} not ranked: the reason is in the note of the row`][band],
      ordered: (order) => PM.remember({ order: order ? order.join(" ") : null }),
      drawn: (shown, all) => { document.getElementById("count").textContent = `${shown.toLocaleString("en-US")} of ${all.toLocaleString("en-US")} rows`; },
    });
    status();
  };
  document.getElementById("grid").addEventListener("change", (event) => {
    if (!event.target.classList.contains("picked")) return;
    if (event.target.checked) PM.picked.add(event.target.value); else PM.picked.delete(event.target.value);
    status();
  });
  const status = () => {
    compare.disabled = PM.picked.size < 2;
    compare.textContent = PM.picked.size ? `Compare ${PM.picked.size}` : "Compare";
  };
  const setUpColumns = (section) => {
    const panel = document.getElementById("column-list");
    panel.replaceChildren(...board.columns.filter((one) => one.key !== "method").map((column) => {
      const box = PM.make("input", { type: "checkbox", value: column.key });
      box.checked = visibleOf(section).includes(column.key);
      box.addEventListener("change", () => {
        const keys = board.columns.map((one) => one.key).filter((key) => (key === column.key ? box.checked : PM.grid.visible.includes(key)));
        PM.grid.show(arranged(keys));
        PM.remember({ show: keys.join(",") });
      });
      return PM.make("label", { class: "check" }, box, column.unit ? `${column.label} (${column.unit})` : column.label);
    }));
  };

  // --- the front
  const groupOf = (section, row) => {
    if (colourBy.value === "front") return row.front ? "on the front" : "other rows";
    const text = PM.text(section, row[colourBy.value]);
    return PM.groups.includes(text) ? text : "others";
  };
  const chooseGroups = (section) => {
    const counts = new Map();
    if (colourBy.value !== "front") section.rows.forEach((row) => { const text = PM.text(section, row[colourBy.value]); counts.set(text, (counts.get(text) || 0) + (row.front ? 1000 : 1)); });
    const names = [...counts].sort((a, b) => b[1] - a[1]).map(([name]) => name);
    PM.groups = names.length > PM.mostColours ? names.slice(0, PM.mostColours - 1) : names;
  };
  const setUpAcross = (section) => {
    const named = section.axes[1] ? [PM.make("option", { value: "" }, section.axes[1].label)] : [];
    across.replaceChildren(...named, ...board.columns.filter((column, at) => column.weighable && column.key !== board.rank && hasValues(section, at)).map((column) => PM.make("option", { value: column.key }, column.label)));
    across.value = PM.state().get("x") || "";
    if (across.selectedIndex < 0) across.selectedIndex = 0;
  };
  const bars = (place, factor) => {
    const [value, low, high, sd] = place;
    if (value === null) return {};
    if (low !== null && high !== null) return [low * factor, high * factor];
    return sd ? [(value - sd) * factor, (value + sd) * factor] : [];
  };
  const drawFront = (section) => {
    const element = document.getElementById("front");
    const caption = document.getElementById("front-caption");
    if (section.axes.length < 2 && !across.options.length) {
      element.hidden = true;
      caption.textContent = "No front: this table lacks values on one of the board's axes.";
      return;
    }
    element.hidden = false;
    const at = board.columns.findIndex((column) => column.key === across.value);
    const scoreAt = board.columns.findIndex((column) => column.key === board.rank);
    const x = across.value ? board.columns[at] : section.axes[1];
    const xOf = (row) => (across.value ? (Array.isArray(row.values[at]) ? [row.values[at][0], null, null, null] : [null]) : row.axes[1]);
    const y = section.axes[0] || board.columns[scoreAt];
    const yOf = (row) => (section.axes[0] ? row.axes[0] : Array.isArray(row.values[scoreAt]) ? [row.values[scoreAt][0], null, null, null] : [null]);
    const all = section.rows.filter((row) => xOf(row)[0] !== null && yOf(row)[0] !== null && keepFacets(row));
    // many rows that did not learn lie on each other at the score of the base: the table has them
    const verdict = facetOf(section, "learned") || (() => "");
    const trained = all.filter((row) => VERDICTS.includes(verdict(row)));
    const silent = trained.filter((row) => verdict(row) !== VERDICTS[0] && !row.front && !PM.advised.includes(row.id));
    const crowded = trained.length > FEW_ROWS && silent.length > trained.length / 2;
    const drawn = crowded ? all.filter((row) => !silent.includes(row)) : all;
    const kept = [...drawn.filter((row) => row.front), ...drawn.filter((row) => !row.front)].slice(0, MOST_POINTS);
    const fine = kept.length <= 400;
    chooseGroups(section);
    const series = new Map();
    const names = colourBy.value === "front" ? ["on the front", "other rows"] : [...PM.groups, "others"];
    names.forEach((name, number) => series.set(name, { name, symbol: colourBy.value === "front" ? (number ? "circle" : "diamond") : name === "others" ? "circle" : PM.symbol(number), colour: name === "others" || name === "other rows" ? "var(--mark)" : colourBy.value === "front" ? "var(--accent)" : PM.colour(number), points: [] }));
    let named = 0;
    const order = [...kept].sort((a, b) => Number(PM.advised.includes(b.id)) - Number(PM.advised.includes(a.id)));
    for (const row of order) {
      const [xs, ys] = [xOf(row), yOf(row)];
      const [xl, xh] = fine ? bars(xs, x.factor) : [];
      const [yl, yh] = fine ? bars(ys, y.factor) : [];
      const point = { x: xs[0] * x.factor, y: ys[0] * y.factor, big: row.front, faint: Object.keys(PM.limits).length > 0 && PM.meets(row) !== true, ring: row.id === PM.advised[0], href: `rows/${encodeURIComponent(row.page)}.html`,
        tip: `${PM.rowName(section, row)} · ${PM.rankText(row.rank)} · ${PM.number(ys[0] * y.factor, 4)} ${y.unit} · ${PM.number(xs[0] * x.factor, 4)} ${x.unit}` };
      if (xl !== undefined) Object.assign(point, { xl, xh });
      if (yl !== undefined) Object.assign(point, { yl, yh });
      if ((row.front || point.ring) && named < MOST_NAMES) { point.label = PM.rowName(section, row); named += 1; }
      series.get(groupOf(section, row)).points.push(point);
    }
    PM.plot(element, {
      x: { label: PM.named(x) }, y: { label: PM.named(y) }, legend: true, series: [...series.values()].filter((one) => one.points.length),
      toggled: (hidden) => { hiddenNames = new Set(hidden); PM.grid.draw(); },
    });
    const most = drawn.length > kept.length ? ` ${kept.length.toLocaleString("en-US")} of ${drawn.length.toLocaleString("en-US")} rows are drawn, those on the front among them.` : "";
    const cut = `${crowded ? ` ${trained.length - silent.length} of ${trained.length} trained rows learned or are on the front; the others are in the table alone.` : ""}${most}`;
    caption.textContent = `Large marks: the front. Ring: the recommended row. Bars: 95 % interval where there is one, else one standard deviation over seeds${fine ? "" : "; left out above 400 rows"}. Press a name in the legend to hide its rows here and in the table.${cut}`;
  };

  // --- everything together
  const refresh = () => { PM.advise(PM.section); drawFront(PM.section); PM.grid?.draw(); };
  const show = (section) => {
    PM.section = section;
    PM.picked.clear();
    hiddenNames = new Set();
    document.getElementById("conditions").replaceChildren(...[["table", section.title], ...section.conditions.filter(([name]) => !HIDDEN_CONDITIONS.includes(name)), ...(section.date ? [["last run", section.date]] : [])].map(([name, text]) =>
      PM.make("div", {}, PM.make("dt", {}, name), PM.make("dd", {}, PM.make("bdi", {}, text)))));
    document.getElementById("caption").textContent = section.caption;
    PM.showLimits(section);
    PM.advise(section);
    setUpFacets(section);
    setUpColumns(section);
    setUpAcross(section);
    chooseGroups(section);
    drawGrid(section);
    requestAnimationFrame(() => drawFront(section));
  };
  const first = PM.chooseSection(board, (section) => { PM.remember({ s: section.id, f: null }); show(section); });
  setUpWeights(() => {
    const used = Object.entries(weights).filter(([, weight]) => weight);
    PM.remember({ w: used.map(([key, weight]) => `${key}:${weight}`).join(",") || null, order: null });
    PM.advise(PM.section);
    drawGrid(PM.section);
    drawFront(PM.section);
  });
  PM.setUpLimits(() => { PM.rememberLimits(); after(refresh); });
  colourBy.value = PM.state().get("by") || "quantization";
  if (colourBy.selectedIndex < 0) colourBy.value = "quantization";
  colourBy.addEventListener("change", () => { PM.remember({ by: colourBy.value }); hiddenNames = new Set(); document.getElementById("front").hiddenSeries?.clear(); drawFront(PM.section); PM.grid.draw(); });
  across.addEventListener("change", () => { PM.remember({ x: across.value }); drawFront(PM.section); });
  search.value = PM.state().get("q") || "";
  readWords();
  frontOnly.checked = PM.state().get("front") === "1";
  search.addEventListener("input", () => { PM.remember({ q: search.value }); readWords(); PM.grid.draw(); });
  frontOnly.addEventListener("change", () => { PM.remember({ front: frontOnly.checked ? "1" : null }); PM.grid.draw(); });
  compare.addEventListener("click", () => { location.href = `compare.html#s=${PM.section.id}&rows=${[...PM.picked].join(",")}`; });
  document.getElementById("csv").addEventListener("click", download);
  document.getElementById("columns").addEventListener("keydown", (event) => { if (event.key === "Escape") { event.currentTarget.open = false; event.currentTarget.firstElementChild.focus(); } });
  show(first);
  addEventListener("hashchange", () => location.reload()); // a link into this very page
})();
