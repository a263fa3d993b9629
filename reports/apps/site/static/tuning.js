// Scores over the learning rates that were tried.
"use strict";
(() => {
  const PM = window.PM;
  const curves = PM.tuning;
  const select = document.getElementById("curve");
  if (!select || !curves.length) return;
  const MOST = 7;
  const metrics = [...new Set(curves.map((curve) => curve.metric))];
  metrics.forEach((metric) => select.append(PM.make("option", { value: metric }, curves.find((curve) => curve.metric === metric).label)));

  const means = (points) => {
    const by = new Map();
    points.forEach(([rate, value]) => by.set(rate, [...(by.get(rate) || []), value]));
    return [...by].sort((a, b) => a[0] - b[0]).map(([rate, values]) => ({ rate, values, mean: values.reduce((a, b) => a + b) / values.length }));
  };
  const draw = () => {
    const kept = curves.filter((curve) => curve.metric === select.value);
    const factor = kept[0].unit === "fraction" ? 100 : 1;
    const unit = kept[0].unit === "fraction" ? "%" : kept[0].unit;
    PM.plot(document.getElementById("curves"), () => ({
      x: "learning rate", y: `${kept[0].label} (${unit})`, xExtra: { type: "log" }, legend: true,
      traces: kept.slice(0, MOST).map((curve, number) => {
        const points = means(curve.points);
        return { type: "scatter", mode: "lines+markers", name: PM.escape(curve.name), line: { color: PM.colours()[number], width: 1.4 },
          x: points.map((one) => one.rate), y: points.map((one) => one.mean * factor),
          error_y: { type: "data", symmetric: false, width: 0, thickness: 1, array: points.map((one) => (Math.max(...one.values) - one.mean) * factor), arrayminus: points.map((one) => (one.mean - Math.min(...one.values)) * factor) } };
      }),
    }));
    const rows = kept.flatMap((curve) => curve.points.map(([rate, value, seed, role]) => PM.make("tr", {}, PM.make("th", { scope: "row" }, PM.make("bdi", {}, curve.name)), PM.make("td", { class: "number" }, PM.number(rate)), PM.make("td", { class: "number" }, PM.number(value * factor, 4)), PM.make("td", {}, seed), PM.make("td", {}, role))));
    document.getElementById("values").replaceChildren(PM.make("thead", {}, PM.make("tr", {}, ...["method", "learning rate", `${kept[0].label} (${unit})`, "seed", "role"].map((name) => PM.make("th", { scope: "col" }, name)))), PM.make("tbody", {}, ...rows));
  };
  select.addEventListener("change", draw);
  draw();
})();
