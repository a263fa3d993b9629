// A cell's curves and its scored items.
"use strict";
(() => {
  const PM = window.PM;
  const { series, samples } = PM.cell;
  const units = { step_ms: "ms", loss: "nat", power_w: "W" };

  const select = document.getElementById("series");
  if (select) {
    const draw = () => {
      const name = select.value;
      PM.plot(document.getElementById("curve"), () => ({
        x: "step", y: units[name] ? `${name} (${units[name]})` : name,
        traces: [{ type: "scatter", mode: "lines", x: series[name].map((_, at) => at + 1), y: series[name], line: { color: PM.ink("accent"), width: 1.4 }, hovertemplate: "step %{x}: %{y:.5~g}<extra></extra>" }],
      }));
    };
    select.addEventListener("change", draw);
    draw();
  }
  const power = document.getElementById("power");
  if (power) {
    PM.plot(power, () => ({
      x: "time since the cell began (s)", y: "power (W)", yExtra: { rangemode: "tozero" },
      traces: [{ type: "scatter", mode: "lines", x: series.power_s, y: series.power_w, line: { color: PM.ink("accent"), width: 1.2, shape: "hv" }, hovertemplate: "%{x:.3f} s: %{y:.1f} W<extra></extra>" }],
    }));
  }

  const arm = document.getElementById("arm");
  if (!arm) return;
  const wrong = document.getElementById("wrong");
  const search = document.getElementById("sample-search");
  let grid = null;
  const text = (at) => ({ data: at, render: (value, kind) => (kind === "display" ? `<bdi>${PM.escape(value)}</bdi>` : value) });
  const verdict = { true: '<span class="yes">right</span>', false: '<span class="no">wrong</span>', null: "–" };
  const draw = () => {
    const { rows, shown, of, right } = samples[Number(arm.value)];
    document.getElementById("samples-note").textContent =
      `The first ${shown.toLocaleString("en-US")} of ${of.toLocaleString("en-US")} scored items; ${right.toLocaleString("en-US")} of all are right. The record has the rest.`;
    if (grid) grid.destroy();
    const table = PM.make("table", { class: "board samples", "aria-label": "Scored items" });
    document.getElementById("samples").replaceChildren(table);
    grid = new window.DataTable(table, {
      data: rows, paging: false, scrollY: "50vh", scrollX: true, scrollCollapse: true, order: [],
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
      columns: [
        { title: "right", data: 2, type: "string", render: (value, kind) => (kind === "display" ? verdict[value] : value === null ? "not judged" : value ? "right" : "wrong") },
        { title: "item", ...text(1) }, { title: "prediction", ...text(3) }, { title: "answer", ...text(4) },
        { title: "log p of the answer (nat)", data: 5, className: "number", render: (value, kind) => (kind === "display" ? PM.number(value, 4) : value) },
        { title: "task", ...text(0) },
        { title: "input cut", data: 6, render: (value) => (value ? "cut" : "") },
      ],
    });
    const body = grid.table().container().querySelector(".dt-scroll-body");
    body.tabIndex = 0;
    body.setAttribute("role", "region");
    body.setAttribute("aria-label", "Scored items");
    grid.search.fixed("wrong", (_text, row) => !wrong.checked || row[2] === false);
    grid.search(search.value).draw();
  };
  arm.addEventListener("change", draw);
  wrong.addEventListener("change", () => grid.draw());
  search.addEventListener("input", () => grid.search(search.value).draw());
  draw();
})();
