// A cell's curves and its scored items.
"use strict";
(() => {
  const PM = window.PM;
  const { series, samples } = PM.cell;
  const units = { step_ms: "ms", loss: "nat", power_w: "W" };

  const copy = document.getElementById("copy");
  copy?.addEventListener("click", async () => {
    const command = document.querySelector(".command");
    try {
      await navigator.clipboard.writeText(command.textContent);
      copy.textContent = "Copied";
    } catch { // a page from a file may not write to the clipboard: the text is selected instead
      getSelection().selectAllChildren(command);
      copy.textContent = "Selected";
    }
  });
  const select = document.getElementById("series");
  if (select) {
    const draw = () => {
      const name = select.value;
      PM.plot(document.getElementById("curve"), {
        x: { label: "step" }, y: { label: units[name] ? `${name} (${units[name]})` : name },
        series: [{ name, colour: "var(--accent)", line: "straight", points: series[name].map((value, at) => ({ x: at + 1, y: value, plain: true })) }],
      });
    };
    select.addEventListener("change", draw);
    draw();
  }
  const power = document.getElementById("power");
  if (power) {
    PM.plot(power, {
      x: { label: "time since the cell began (s)" }, y: { label: "power (W)", zero: true },
      series: [{ name: "power", colour: "var(--accent)", line: "step", points: series.power_s.map((second, at) => ({ x: second, y: series.power_w[at], plain: true })) }],
    });
  }

  const arm = document.getElementById("arm");
  if (!arm) return;
  const wrong = document.getElementById("wrong");
  const search = document.getElementById("sample-search");
  const verdict = { true: '<span class="yes">right</span>', false: '<span class="no">wrong</span>', null: "–" };
  const text = (key, title, at, className) => ({ key, title, className, sort: (row) => row[at], html: (row) => `<bdi>${PM.escape(row[at])}</bdi>` });
  let grid = null;
  const draw = () => {
    const { rows, shown, of, right } = samples[Number(arm.value)];
    document.getElementById("samples-note").textContent =
      `The first ${shown.toLocaleString("en-US")} of ${of.toLocaleString("en-US")} scored items; ${right.toLocaleString("en-US")} of all are right. The record has the rest.`;
    const found = new Map(rows.map((row) => [row, row.filter((value) => typeof value === "string").join(" ").toLowerCase()]));
    const columns = [
      { key: "right", title: "right", sort: (row) => (row[2] === null ? null : Number(row[2])), html: (row) => verdict[row[2]] },
      text("item", "item", 1),
      ...(rows.some((row) => row[7]) ? [text("question", "question", 7, "long")] : []),
      text("prediction", "prediction", 3, "long"), text("answer", "answer", 4, "long"),
      { key: "logp", title: "log p of the answer", unit: "nat", number: true, sort: (row) => row[5], html: (row) => PM.number(row[5], 4) },
      text("task", "task", 0),
      { key: "cut", title: "input cut", sort: (row) => Number(row[6]), html: (row) => (row[6] ? "cut" : "") },
    ];
    grid = PM.table(document.getElementById("samples"), {
      columns, rows, label: "Scored items", className: "samples",
      keep: (row) => (!wrong.checked || row[2] === false) && search.value.toLowerCase().split(/\s+/).every((word) => found.get(row).includes(word)),
    });
  };
  arm.addEventListener("change", draw);
  wrong.addEventListener("change", () => grid.draw());
  search.addEventListener("input", () => grid.draw());
  draw();
})();
