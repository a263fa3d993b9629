// The table: DataTables over the rows of one section, its filters, and the reader's own weights.
"use strict";
(() => {
  const PM = window.PM;
  const MANY_ROWS = 150; // from here on only the rows in view are drawn
  const weights = {};
  PM.weights = weights;
  let grid = null;

  // --- weights
  PM.scores = (section) => {
    const used = PM.board.columns.map((column, at) => [column, at]).filter(([column]) => weights[column.key]);
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

  PM.setUpWeights = (changed) => {
    const saved = Object.fromEntries((PM.state().get("w") || "").split(",").map((part) => part.split(":")).filter((part) => part.length === 2));
    const list = document.getElementById("weight-list");
    for (const column of PM.board.columns.filter((one) => one.weighable)) {
      const id = `weight-${column.key}`;
      const slider = PM.make("input", { id, type: "range", min: "0", max: "3", step: "0.5", value: saved[column.key] || "0" });
      const shown = PM.make("output", { for: id }, slider.value);
      const read = () => { shown.textContent = slider.value; weights[column.key] = Number(slider.value); };
      slider.addEventListener("input", () => { read(); changed(); });
      read();
      list.append(PM.make("div", { class: "weight" }, PM.make("label", { for: id }, `${column.label} (${column.better})`), slider, shown));
    }
    document.getElementById("weights-off").addEventListener("click", () => {
      list.querySelectorAll("input").forEach((slider) => { slider.value = "0"; slider.dispatchEvent(new Event("input")); });
    });
    document.getElementById("weights").open = Object.values(weights).some(Boolean);
  };

  PM.rememberWeights = () => {
    const used = Object.entries(weights).filter(([, weight]) => weight);
    PM.remember({ w: used.map(([key, weight]) => `${key}:${weight}`).join(",") || null });
  };

  // --- columns
  const name = (section) => (row, kind) => {
    const text = PM.text(section, row.method);
    if (kind !== "display") return text;
    const chips = row.marks.map((mark) => `<span class="chip warn">${PM.escape(PM.text(section, mark))}</span>`);
    if (row.baseline) chips.unshift('<span class="chip">baseline</span>');
    if (row.status !== "ok") chips.unshift(`<span class="chip warn">${PM.escape(row.status)}</span>`);
    const note = [PM.text(section, row.notes), PM.text(section, row.why)].filter(Boolean).join("; ");
    const more = note ? ` <button type="button" class="note" data-tip="${PM.escape(note)}" aria-label="Note: ${PM.escape(note)}">i</button>` : "";
    const shown = `<bdi>${PM.escape(text)}</bdi>`;
    const linked = row.cells.length ? `<a href="cells/${encodeURIComponent(row.cells[0][1])}.html">${shown}</a>` : shown;
    return `${linked} ${chips.join(" ")}${more}`;
  };

  const field = (section, column, at) => (row, kind) => {
    const text = PM.text(section, row.values[at]);
    if (column.key === "rank" && kind === "sort") return row.rank === null ? 1e9 : row.rank[0] + row.rank[1] / 1e6;
    return kind === "display" ? `<bdi>${PM.escape(text)}</bdi>` : text;
  };

  const number = (section, column, at) => (row, kind) => {
    const place = row.values[at];
    const value = Array.isArray(place) ? place[0] : null;
    if (kind === "sort" || kind === "type") return value;
    if (kind === "filter") return value === null ? "" : value * column.factor;
    if (!Array.isArray(place)) {
      const why = PM.escape(PM.text(section, place));
      return `<span class="none" data-tip="${why}">—<span class="sr"> ${why}</span></span>`;
    }
    const [, main, aside, hint] = place;
    const lighter = PM.text(section, aside) ? ` <span class="aside">${PM.escape(PM.text(section, aside))}</span>` : "";
    const tip = PM.text(section, hint) ? ` data-tip="${PM.escape(PM.text(section, hint))}"` : "";
    return `<span${tip}>${PM.escape(main)}${lighter}</span>`;
  };

  const scoreColumn = (section, scores) => (row, kind) => {
    const score = scores?.get(row.id);
    if (kind === "sort" || kind === "type") return score ?? null;
    if (kind === "filter") return score ?? "";
    return score === undefined ? "—" : PM.number(2 ** score);
  };

  const columnsOf = (section, scores) => [
    { name: "pick", title: '<span class="sr">Compare</span>', orderable: false, searchable: false, className: "pick noVis",
      render: (row, kind) => (kind === "display" ? `<input type="checkbox" class="picked" value="${PM.escape(row.id)}" aria-label="Compare ${PM.escape(PM.rowName(section, row))}"${PM.picked.has(row.id) ? " checked" : ""}>` : "") },
    { name: "front", title: '<span class="sr">Pareto front</span>', className: "flag noVis", searchable: false,
      render: (row, kind) => (kind === "display" ? (row.front ? '<span role="img" aria-label="On the Pareto front" data-tip="On the Pareto front">◆</span>' : "") : row.front ? 0 : 1) },
    { name: "score", title: "score", className: "number noVis", visible: Boolean(scores), searchable: false, type: "num", render: scoreColumn(section, scores) },
    ...PM.board.columns.map((column, at) => ({
      name: column.key,
      title: `${PM.escape(column.label)}<span class="unit">${PM.escape(column.unit) || "&nbsp;"}</span>`,
      className: column.number || column.key === "rank" ? "number" : column.key === "method" ? "method" : "name",
      type: column.number || column.key === "rank" ? "num" : "string",
      orderSequence: column.better === "higher" ? ["desc", "asc"] : ["asc", "desc"],
      searchBuilderTitle: column.unit ? `${column.label} (${column.unit})` : column.label,
      searchBuilderType: column.number ? "num" : "string",
      render: column.key === "method" ? name(section) : column.number ? number(section, column, at) : field(section, column, at),
    })),
  ].map((column) => ({ ...column, data: null, searchBuilder: { orthogonal: { display: "filter", search: "filter" } },
    render: (_data, kind, row) => column.render(row, kind) }));

  // --- CSV of the current view: no cell of it is a formula to a spreadsheet
  const neutral = (text) => (/^\s*[=+\-@|%\t\r\n]/.test(text) ? `'${text}` : text);
  const quote = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  PM.csv = () => {
    const shown = PM.board.columns.map((column, at) => [column, at]).filter(([column]) => grid.column(`${column.key}:name`).visible());
    const lines = [shown.map(([column]) => quote(neutral(column.unit ? `${column.label} [${column.unit}]` : column.label))).join(",")];
    grid.rows({ search: "applied", order: "applied" }).data().each((row) => {
      lines.push(shown.map(([column, at]) => {
        const place = row.values[at];
        if (column.number) return Array.isArray(place) && place[0] !== null ? String(place[0] * column.factor) : "";
        return quote(neutral(PM.text(PM.section, place)));
      }).join(","));
    });
    return `${lines.join("\r\n")}\r\n`;
  };
  const download = () => {
    const address = URL.createObjectURL(new Blob(["\ufeff", PM.csv()], { type: "text/csv" }));
    PM.make("a", { href: address, download: "board.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };

  // --- the grid
  PM.drawGrid = (section, changed) => {
    if (grid) grid.destroy();
    const table = PM.make("table", { id: "rows", class: "board", "aria-label": section.title });
    document.getElementById("grid").replaceChildren(table);
    const state = PM.state();
    const hidden = new Set((state.get("hide") || "").split(",").filter(Boolean));
    const scores = PM.scores(section);
    const columns = columnsOf(section, scores).map((column) => (hidden.has(column.name) ? { ...column, visible: false } : column));
    const many = section.rows.length > MANY_ROWS;
    const [orderName, direction] = (state.get("order") || "").split(" ");
    const orderAt = columns.findIndex((column) => column.name === orderName);
    grid = new window.DataTable(table, {
      data: section.rows, columns, autoWidth: !many, deferRender: true, paging: many, scroller: many ? { displayBuffer: 4 } : false, scrollX: true,
      scrollY: "70vh", scrollCollapse: true, order: orderAt < 0 ? [] : [[orderAt, direction === "desc" ? "desc" : "asc"]],
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
      createdRow: (line, row) => {
        if (row.status !== "ok") line.classList.add("failed");
        if (row.baseline) line.classList.add("baseline");
        if (row.front) line.classList.add("front");
        if (row.rank !== null && row.rank[0] === 1) line.classList.add("leading");
      },
      language: { zeroRecords: "No row matches: clear a filter or a limit.", emptyTable: "No rows.", searchBuilder: { title: { 0: "", _: "" }, add: "Add a filter" } },
    });
    PM.grid = grid;
    grid.table().container().querySelectorAll(".dt-scroll-body").forEach((body) => {
      body.tabIndex = 0;
      body.setAttribute("role", "region");
      body.setAttribute("aria-label", "Rows");
    });
    explain(columns);
    grid.search.fixed("limits", (_text, row) => PM.meets(row) === true || !Object.keys(PM.limits).length);
    grid.search.fixed("front", (_text, row) => !document.getElementById("front-only").checked || row.front);
    grid.search(document.getElementById("search").value);
    builder(section, state);
    grid.on("order", () => {
      const [first] = grid.order();
      PM.remember({ order: first && first[1] ? `${columns[first[0]].name} ${first[1]}` : null });
    });
    grid.on("column-visibility", () => {
      PM.remember({ hide: columns.filter((column, at) => column.name !== "score" && !grid.column(at).visible()).map((column) => column.name).join(",") || null });
    });
    grid.on("draw", changed);
    table.addEventListener("change", (event) => {
      if (!event.target.classList.contains("picked")) return;
      if (event.target.checked) PM.picked.add(event.target.value); else PM.picked.delete(event.target.value);
      changed();
    });
    grid.draw();
  };

  const explain = (columns) => {
    const meaning = Object.fromEntries(PM.board.columns.map((column) => [column.key, column.meaning]));
    meaning.score = "Your weighted score; see above. Higher is better.";
    meaning.front = "◆: no other row is clearly better on one axis without being worse on another.";
    columns.forEach((column, at) => {
      const head = grid.column(at).header();
      if (meaning[column.name]) {
        head.dataset.tip = meaning[column.name];
        if (PM.board.columns.some((one) => one.key === column.name)) head.setAttribute("aria-describedby", `meaning-${column.name}`);
      }
    });
  };

  const builder = (section, state) => {
    const box = document.getElementById("builder");
    const made = new window.DataTable.SearchBuilder(grid, { depthLimit: 2, columns: ":not(.noVis)" });
    box.replaceChildren(made.getNode()[0]); // a jQuery list of one
    const named = { "dtsb-data": "Column", "dtsb-condition": "Condition", "dtsb-value": "Value" };
    // the builder strips what looks like markup from the values it offers; they are shown as they are
    const whole = () => box.querySelectorAll('.dtsb-value option[type="String"]').forEach((option) => {
      if (option.textContent !== option.value) option.textContent = option.value;
    });
    const name = () => box.querySelectorAll("select, input").forEach((entry) => {
      entry.setAttribute("autocomplete", "off");
      const kind = Object.keys(named).find((one) => entry.classList.contains(one));
      if (kind) entry.setAttribute("aria-label", named[kind]);
    });
    new MutationObserver(() => { name(); whole(); }).observe(box, { childList: true, subtree: true });
    let saved = null;
    try { saved = JSON.parse(state.get("f") || "null"); } catch { saved = null; }
    if (saved) { made.rebuild(saved); document.getElementById("filters").open = true; }
    grid.on("draw", () => {
      const details = made.getDetails(true);
      PM.remember({ f: details.criteria && details.criteria.some((one) => one.condition) ? JSON.stringify(details) : null });
    });
  };

  PM.setUpButtons = () => {
    const csv = PM.make("button", { type: "button", id: "csv" }, "CSV of this view");
    csv.addEventListener("click", download);
    const list = PM.make("details", { id: "columns", class: "menu" }, PM.make("summary", {}, "Columns"));
    const panel = PM.make("div", { class: "panel" });
    for (const column of PM.board.columns.filter((one) => one.key !== "method")) {
      const box = PM.make("input", { type: "checkbox", value: column.key });
      box.checked = !(PM.state().get("hide") || "").split(",").includes(column.key);
      box.addEventListener("change", () => grid.column(`${column.key}:name`).visible(box.checked));
      panel.append(PM.make("label", { class: "check" }, box, column.unit ? `${column.label} (${column.unit})` : column.label));
    }
    list.append(panel);
    list.addEventListener("keydown", (event) => { if (event.key === "Escape") { list.open = false; list.firstChild.focus(); } });
    document.getElementById("buttons").append(csv, list);
  };
})();
