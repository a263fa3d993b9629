// One cell over the nights: values in the order of their end.
"use strict";
(() => {
  const PM = window.PM;
  const { metrics, cells } = PM.trends;
  const select = document.getElementById("quantity");
  if (!select || !cells.length) return;
  const MOST = 7;
  const needle = document.getElementById("cells");
  metrics.forEach((metric) => select.append(PM.make("option", { value: metric.key }, `${metric.label} (${metric.unit})`)));
  if (PM.state().get("m")) select.value = PM.state().get("m");
  needle.value = PM.state().get("q") || "";

  const draw = () => {
    const metric = metrics.find((one) => one.key === select.value);
    const wanted = needle.value.toLowerCase();
    const kept = cells.filter((cell) => cell.label.toLowerCase().includes(wanted));
    const shown = kept.slice(0, MOST);
    const having = (cell) => cell.runs.filter((run) => run.values[metric.key] !== undefined);
    PM.plot(document.getElementById("trend"), () => ({
      x: "finished", y: `${metric.label} (${metric.unit})`, xExtra: { type: "date" }, legend: true,
      traces: shown.map((cell, number) => {
        const runs = having(cell);
        const changed = runs.map((run, at) => at > 0 && run.stack !== runs[at - 1].stack);
        return { type: "scatter", mode: "lines+markers", name: PM.escape(cell.label), x: runs.map((run) => run.finished), y: runs.map((run) => run.values[metric.key]),
          line: { color: PM.colours()[number], width: 1.2 }, marker: { size: 8, symbol: changed.map((is) => (is ? "circle-open" : "circle")) },
          text: runs.map((run) => `stack ${run.stack}`), hovertemplate: "%{x}: %{y:.5~g}<br>%{text}<extra></extra>" };
      }),
    }));
    document.getElementById("trend-caption").textContent = kept.length > MOST ? `The first ${MOST} of ${kept.length} cells are drawn; filter them by a part of their label. The table has all of them.` : "";
    const rows = kept.flatMap((cell) => cell.runs.map((run) => PM.make("tr", {}, PM.make("th", { scope: "row" }, PM.make("bdi", {}, cell.label)), PM.make("td", {}, run.finished), PM.make("td", {}, run.status), PM.make("td", { class: "number" }, PM.number(run.values[metric.key], 4)), PM.make("td", {}, PM.make("code", {}, run.stack || "—")))));
    document.getElementById("values").replaceChildren(PM.make("thead", {}, PM.make("tr", {}, ...["cell", "finished", "ended", `${metric.label} (${metric.unit})`, "software stack"].map((name) => PM.make("th", { scope: "col" }, name)))), PM.make("tbody", {}, ...rows));
  };
  select.addEventListener("change", () => { PM.remember({ m: select.value }); draw(); });
  needle.addEventListener("input", () => { PM.remember({ q: needle.value }); draw(); });
  draw();
})();
