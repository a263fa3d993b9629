// A table that sorts, filters and draws only the rows in view; used for the rows of a board and for scored items.
"use strict";
(() => {
  const PM = window.PM;
  const MANY = 150; // from here on only the rows in view are drawn
  const SPARE = 12; // rows drawn above and below the view

  // options: { columns: [{key, title, unit, tip, number, className, sort(row), html(row)}], rows, keep(row), band(row), order:
  // [key, "asc"|"desc"] or null, label, rowClass(row), ordered(order), drawn(info), first: {key: "desc"} }
  PM.table = (box, options) => {
    const head = PM.make("thead");
    const body = PM.make("tbody");
    const table = PM.make("table", { class: `board ${options.className || ""}`, "aria-label": options.label }, head, body);
    box.replaceChildren(table);
    box.classList.add("scroll", "grid");
    Object.entries({ tabindex: "0", role: "region", "aria-label": options.label }).forEach(([name, value]) => box.setAttribute(name, value));
    let order = options.order || null;
    let visible = options.visible || options.columns.map((column) => column.key);
    let sorted = null;
    let lines = []; // rows, and between them the titles of bands
    let height = 34;

    const columns = () => visible.map((key) => options.columns.find((column) => column.key === key)).filter(Boolean);

    // a missing value is last in both directions
    const sort = () => {
      if (!order) { sorted = options.rows; return; }
      const column = options.columns.find((one) => one.key === order[0]);
      if (!column) { sorted = options.rows; return; }
      const sign = order[1] === "desc" ? -1 : 1;
      const keys = new Map(options.rows.map((row) => [row, column.sort(row)]));
      const none = (value) => value === null || value === undefined || value === "";
      sorted = [...options.rows].sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        if (none(x) || none(y)) return none(x) - none(y);
        return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
      });
    };

    const drawHead = () => {
      head.replaceChildren(PM.make("tr", {}, ...columns().map((column) => {
        const mine = order && order[0] === column.key;
        const button = PM.make("button", { type: "button", class: "sort", "data-tip": column.tip, "data-key": column.key }, column.title, PM.make("span", { class: "arrow", "aria-hidden": "true" }, mine ? (order[1] === "asc" ? "▲" : "▼") : ""), PM.make("span", { class: "unit" }, column.unit || "\u00a0"));
        return PM.make("th", { scope: "col", class: column.className || (column.number ? "number" : ""), "aria-sort": mine ? (order[1] === "asc" ? "ascending" : "descending") : null }, button);
      })));
    };
    head.addEventListener("click", (event) => {
      const button = event.target.closest("button.sort");
      if (!button) return;
      const column = options.columns.find((one) => one.key === button.dataset.key);
      const [one, two] = column.descends ? ["desc", "asc"] : ["asc", "desc"];
      const now = order && order[0] === column.key ? order[1] : null;
      order = now === null ? [column.key, one] : now === one ? [column.key, two] : null; // a third press: the board's own order
      sort();
      drawHead();
      draw();
      head.querySelector(`[data-key="${CSS.escape(column.key)}"]`)?.focus();
      options.ordered?.(order);
    });

    const html = (line) => {
      if (line.band !== undefined) return `<tr class="band"><th colspan="${visible.length}" scope="colgroup"><span>${PM.escape(line.band)}</span></th></tr>`;
      const cells = columns().map((column) => `<td class="${column.className || (column.number ? "number" : "")}">${column.html(line)}</td>`);
      return `<tr class="${options.rowClass?.(line) || ""}">${cells.join("")}</tr>`;
    };

    let from = -1;
    const window_ = (again) => {
      const many = lines.length > MANY;
      box.classList.toggle("tall", many);
      const start = many ? Math.max(0, Math.floor(box.scrollTop / height) - SPARE) : 0;
      if (!again && start === from) return;
      from = start;
      const end = many ? Math.min(lines.length, start + Math.ceil((box.clientHeight || 700) / height) + 2 * SPARE) : lines.length;
      const spacer = (rows) => (rows > 0 ? `<tr class="spacer" aria-hidden="true"><td colspan="${visible.length}" style="height:${rows * height}px"></td></tr>` : "");
      body.innerHTML = spacer(start) + lines.slice(start, end).map(html).join("") + spacer(lines.length - end);
      if (!lines.length) body.innerHTML = `<tr class="empty"><td colspan="${visible.length}">No row matches: clear a filter or a limit.</td></tr>`;
      const drawn = body.querySelector("tr:not(.spacer):not(.band)");
      if (many && again && drawn && Math.abs(drawn.offsetHeight - height) > 1) { height = drawn.offsetHeight; window_(true); }
    };
    let waiting = 0;
    box.addEventListener("scroll", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => window_(false)); }, { passive: true });

    const made = {
      shown: [],
      columns,
      get order() { return order; },
      get visible() { return visible; },
      show: (keys) => { visible = keys; drawHead(); draw(); },
      sortBy: (next) => { order = next; sort(); drawHead(); draw(); },
      draw: () => draw(),
    };
    const draw = () => {
      if (!sorted) sort();
      made.shown = sorted.filter(options.keep || (() => true));
      lines = made.shown;
      if (!order && options.band) {
        const bands = new Map();
        for (const row of made.shown) { const name = options.band(row); if (!bands.has(name)) bands.set(name, []); bands.get(name).push(row); }
        if (bands.size > 1 || (bands.size === 1 && made.shown.length > 1)) {
          made.shown = [...bands.keys()].sort((a, b) => a - b).flatMap((name) => bands.get(name));
          lines = [...bands.keys()].sort((a, b) => a - b).flatMap((name) => [{ band: options.bandTitle(name, bands.get(name).length) }, ...bands.get(name)]);
        }
      }
      box.scrollTop = 0;
      window_(true);
      options.drawn?.(made.shown.length, options.rows.length);
    };
    drawHead();
    draw();
    return made;
  };
})();
