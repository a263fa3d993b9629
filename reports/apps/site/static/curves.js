// Scores over the learning rates that were tried, values over the nights, and the curves of a row's seeds.
"use strict";
(() => {
  const PM = window.PM;
  const MOST = 7;
  const table = (heads, rows) => document.getElementById("values").replaceChildren(
    PM.make("thead", {}, PM.make("tr", {}, ...heads.map((name) => PM.make("th", { scope: "col" }, name)))), PM.make("tbody", {}, ...rows));
  const named = (text) => PM.make("th", { scope: "row" }, PM.make("bdi", {}, text));
  const number = (text) => PM.make("td", { class: "number" }, text);

  // --- tuning: one small plot a method, its best rate marked
  const curves = PM.tuning || [];
  const chosen = document.getElementById("curve");
  if (chosen && curves.length) {
    const metrics = [...new Set(curves.map((curve) => curve.metric))];
    metrics.forEach((metric) => chosen.append(PM.make("option", { value: metric }, curves.find((curve) => curve.metric === metric).label)));
    const means = (points) => {
      const by = new Map();
      points.forEach(([rate, value]) => by.set(rate, [...(by.get(rate) || []), value]));
      return [...by].sort((a, b) => a[0] - b[0]).map(([rate, values]) => ({ rate, values, mean: values.reduce((a, b) => a + b) / values.length }));
    };
    const draw = () => {
      const kept = curves.filter((curve) => curve.metric === chosen.value);
      const factor = kept[0].unit === "fraction" ? 100 : 1;
      const unit = kept[0].unit === "fraction" ? "%" : kept[0].unit;
      const box = document.getElementById("curves");
      const seen = new IntersectionObserver((entries) => entries.filter((one) => one.isIntersecting).forEach((one) => { seen.unobserve(one.target); one.target.begin(); }), { rootMargin: "400px" });
      box.replaceChildren(...kept.map((curve) => {
        const points = means(curve.points);
        const best = points.reduce((a, b) => ((curve.better === "higher" ? b.mean > a.mean : b.mean < a.mean) ? b : a));
        const plot = PM.make("div", { class: "plot small", role: "group", "aria-label": `${curve.label} of ${curve.name} over learning rate` });
        plot.begin = () => PM.plot(plot, {
          x: { label: "learning rate", type: "log" }, y: { label: `${curve.label} (${unit})` },
          series: [{ name: curve.name, colour: PM.colour(0), line: "straight", points: points.map((one) => ({
            x: one.rate, y: one.mean * factor, yl: Math.min(...one.values) * factor, yh: Math.max(...one.values) * factor, ring: one === best, big: one === best,
            tip: `${PM.number(one.rate)}: ${PM.number(one.mean * factor, 4)} ${unit}, ${one.values.length} runs` })) }],
        });
        seen.observe(plot);
        return PM.make("figure", { class: "multiple" }, PM.make("figcaption", {}, PM.make("bdi", {}, curve.name), PM.make("span", { class: "soft" }, ` best: ${PM.number(best.rate)}`)), plot);
      }));
      table(["method", "learning rate", `${kept[0].label} (${unit})`, "seed", "role"], kept.flatMap((curve) => curve.points.map(([rate, value, seed, role]) =>
        PM.make("tr", {}, named(curve.name), number(PM.number(rate)), number(PM.number(value * factor, 4)), PM.make("td", {}, seed), PM.make("td", {}, role)))));
    };
    chosen.addEventListener("change", draw);
    draw();
  }

  // --- trends
  const trends = PM.trends;
  const select = document.getElementById("quantity");
  if (trends && select && trends.cells.length) {
    const needle = document.getElementById("cells");
    trends.metrics.forEach((metric) => select.append(PM.make("option", { value: metric.key }, `${metric.label} (${metric.unit})`)));
    if (PM.state().get("m")) select.value = PM.state().get("m");
    needle.value = PM.state().get("q") || "";
    const draw = () => {
      const metric = trends.metrics.find((one) => one.key === select.value);
      const kept = trends.cells.filter((cell) => cell.label.toLowerCase().includes(needle.value.toLowerCase()));
      const having = (cell) => cell.runs.filter((run) => run.values[metric.key] !== undefined);
      PM.plot(document.getElementById("trend"), {
        x: { label: "finished", type: "date" }, y: { label: `${metric.label} (${metric.unit})` }, legend: true,
        series: kept.slice(0, MOST).map((cell, at) => {
          const runs = having(cell);
          return { name: cell.label, colour: PM.colour(at), symbol: "circle", line: "straight", points: runs.map((run, place) => ({
            x: Date.parse(run.finished), y: run.values[metric.key], hollow: place > 0 && run.stack !== runs[place - 1].stack,
            tip: `${cell.label}, ${run.finished}: ${PM.number(run.values[metric.key], 5)} ${metric.unit}, stack ${run.stack}` })) };
        }),
      });
      document.getElementById("trend-caption").textContent = kept.length > MOST ? `The first ${MOST} of ${kept.length} cells are drawn; filter them by a part of their label. The table has all of them.` : "";
      table(["cell", "finished", "ended", `${metric.label} (${metric.unit})`, "software stack"], kept.flatMap((cell) => cell.runs.map((run) =>
        PM.make("tr", {}, named(cell.label), PM.make("td", {}, run.finished), PM.make("td", {}, run.status), number(PM.number(run.values[metric.key], 4)), PM.make("td", {}, PM.make("code", {}, run.stack || "—"))))));
    };
    select.addEventListener("change", () => { PM.remember({ m: select.value }); draw(); });
    needle.addEventListener("input", () => { PM.remember({ q: needle.value }); draw(); });
    draw();
  }

  // --- the seeds of a row
  const seeds = document.getElementById("seeds");
  if (seeds) {
    const found = JSON.parse(seeds.dataset.series);
    PM.plot(seeds, {
      x: { label: "step" }, y: { label: "training loss (nat)" }, legend: true,
      series: found.map(([seed, every, values], at) => ({ name: `seed ${seed}`, colour: PM.colour(at), line: "straight", points: values.map((value, step) => ({ x: 1 + step * every, y: value, plain: true })) })),
    });
  }
})();
