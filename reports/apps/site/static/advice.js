// The reader's three questions, and the row that answers them with its runner-up and the reason.
"use strict";
(() => {
  const PM = window.PM;
  const GIB = 2 ** 30;
  const KINDS = ["memory", "latency", "energy", "cost"];
  const SIZE = { memory: GIB, latency: 1, energy: 1, cost: 1 };
  const UNIT = { memory: "GiB", latency: "ms", energy: "J", cost: "" };
  const ASKED = { memory: "GPU memory", latency: "ms per token", energy: "energy", cost: "cost" };
  const NAME = { memory: "Memory", latency: "Latency", energy: "Energy", cost: "Cost" };
  const PLAIN = {
    memory: ["device_used_peak_bytes", "cuda_reserved_peak_bytes", "cuda_allocated_peak_bytes", "process_reserved_peak_bytes"],
    latency: ["tpot_ms"],
    energy: ["energy_gross_j"],
    cost: ["train_gpu_cost"],
  };

  const limits = {}; // kind to the limit in the quantity's own unit; absent: none
  PM.limits = limits;

  // whether a row meets every limit: true, false, or null where it has no reading of a limited quantity
  PM.meets = (row) => {
    let known = true;
    for (const [kind, most] of Object.entries(limits)) {
      const value = row.limits[kind];
      if (value === undefined || value === null) known = false;
      else if (value > most) return false;
    }
    return known ? true : null;
  };

  const span = (section, kind) => {
    const values = section.rows.map((row) => row.limits[kind]).filter((value) => value !== undefined && value !== null);
    return values.length ? [Math.min(...values), Math.max(...values)] : null;
  };

  // --- controls
  const note = (section, kind) => {
    const found = section.limits[kind];
    if (found.metric === null) return `${NAME[kind]}: no row here has a reading (${found.why}), so this limit is ignored.`;
    const [least, most] = span(section, kind).map((value) => PM.number(value / SIZE[kind]));
    const without = section.rows.filter((row) => row.status === "ok" && (row.limits[kind] ?? null) === null).length;
    const kindNote = PLAIN[kind].includes(found.metric) ? "" : `No row has ${ASKED[kind]} itself; applied to: `;
    const missing = without ? ` ${without} rows have no reading.` : "";
    return `${kindNote}${found.label}, ${least}–${most} ${UNIT[kind] || found.unit} here.${missing}`;
  };

  PM.setUpLimits = (changed) => {
    for (const kind of KINDS) {
      const input = document.getElementById(`limit-${kind}`);
      const slider = document.querySelector(`[data-range="${kind}"]`);
      input.addEventListener("input", () => { place(kind); changed(); });
      slider?.addEventListener("input", () => {
        const range = span(PM.section, kind);
        const share = Number(slider.value) / 100;
        const value = range[0] * (range[1] / Math.max(range[0], 1e-12)) ** share / SIZE[kind];
        input.value = share >= 1 ? "" : String(Number((value * 1.0005).toPrecision(3)));
        read(kind);
        changed();
      });
    }
  };

  const read = (kind) => {
    const input = document.getElementById(`limit-${kind}`);
    const value = Number(input.value);
    if (input.value === "" || !Number.isFinite(value) || value < 0 || input.disabled) delete limits[kind];
    else limits[kind] = value * SIZE[kind];
  };

  const place = (kind) => { // the slider follows the number
    read(kind);
    const slider = document.querySelector(`[data-range="${kind}"]`);
    const range = slider && span(PM.section, kind);
    if (!range) return;
    const [least, most] = [Math.max(range[0], 1e-12), Math.max(range[1], 2e-12)];
    const at = limits[kind] === undefined ? 1 : Math.log(Math.max(limits[kind], least) / least) / Math.log(most / least || 2);
    slider.value = String(Math.round(100 * Math.min(1, Math.max(0, at))));
  };

  PM.showLimits = (section) => {
    for (const kind of KINDS) {
      const input = document.getElementById(`limit-${kind}`);
      const slider = document.querySelector(`[data-range="${kind}"]`);
      const absent = section.limits[kind].metric === null;
      input.disabled = absent;
      if (slider) slider.disabled = absent;
      document.querySelectorAll(`[data-limit="${kind}"]`).forEach((box) => box.classList.toggle("off", absent));
      document.getElementById(`note-${kind}`).textContent = note(section, kind);
      input.value = absent ? "" : PM.state().get(kind) ?? input.value;
      place(kind);
    }
    if (section.limits.cost.metric !== null) document.getElementById("currency").textContent = section.limits.cost.unit;
  };

  PM.rememberLimits = () => PM.remember(
    Object.fromEntries(KINDS.map((kind) => [kind, document.getElementById(`limit-${kind}`).value || null])),
  );

  // --- the recommendation
  const cheapest = (section) => KINDS.find((kind) => section.limits[kind].metric !== null);

  // the ranked metric of a row as it is printed: what no reader can see shall decide nothing
  const mean = (row) => {
    const at = PM.board.columns.findIndex((column) => column.key === PM.board.rank);
    const place = row.values[at];
    return Array.isArray(place) ? { value: place[0], text: place[1], sign: PM.board.columns[at].better === "higher" ? 1 : -1 } : { value: 0, text: "", sign: 1 };
  };

  const order = (section) => {
    const cost = cheapest(section);
    const score = PM.scores(section);
    const value = (row) => (cost && row.limits[cost] !== undefined && row.limits[cost] !== null ? row.limits[cost] : Infinity);
    return (a, b) => {
      if (score) return (score.get(b.id) ?? -Infinity) - (score.get(a.id) ?? -Infinity);
      const [ours, theirs] = [mean(a), mean(b)];
      if (a.rank[0] !== b.rank[0]) return a.rank[0] - b.rank[0];
      if (ours.text !== theirs.text) return (theirs.value - ours.value) * theirs.sign;
      return value(a) - value(b) || a.rank[1] - b.rank[1] || section.rows.indexOf(a) - section.rows.indexOf(b);
    };
  };

  const amount = (section, kind, row) =>
    `${PM.number(row.limits[kind] / SIZE[kind])} ${UNIT[kind] || section.limits[kind].unit} ${section.limits[kind].label}`;

  const link = (section, row) => {
    const name = PM.make("bdi", {}, PM.rowName(section, row));
    return row.cells.length ? PM.make("a", { href: `cells/${row.cells[0][1]}.html` }, name) : name;
  };

  const why = (section, row, fitting, total) => {
    const kind = cheapest(section);
    const metric = PM.board.columns.find((column) => column.key === PM.board.rank)?.label ?? PM.board.rank;
    if (PM.scores(section)) return `It has the highest score under the weights you set, of ${fitting.length} rows that meet your limits.`;
    const tied = fitting.filter((other) => other.rank[0] === row.rank[0]);
    const ranked = `${PM.rankText(row.rank)} of ${total} by ${metric}`;
    const best = row.rank[0] === 1
      ? `No row of this table is known to be better (${ranked}).`
      : `Of the rows that meet your limits it has the best rank (${ranked}).`;
    if (tied.length < 2) return best;
    const equal = tied.filter((other) => mean(other).text === mean(row).text);
    const cheap = kind && row.limits[kind] !== undefined && row.limits[kind] !== null ? ` needs the least: ${amount(section, kind, row)}` : "";
    const choice = equal.length < 2
      ? `of these it has the best mean (${mean(row).text})`
      : `of these, ${equal.length} have the best mean (${mean(row).text})${cheap ? `, and among them it${cheap}` : ""}`;
    return `${best} ${tied.length} rows within your limits share that first rank; ${choice}.`;
  };

  const against = (section, row, other) => {
    const kind = cheapest(section);
    if (PM.scores(section)) return "the next score.";
    const parts = [PM.rankText(other.rank)];
    if (kind && other.limits[kind] !== undefined && other.limits[kind] !== null) parts.push(amount(section, kind, other));
    return `${parts.join(", ")}.`;
  };

  PM.advise = (section) => {
    const box = document.getElementById("advice");
    const ranked = section.rows.filter((row) => row.status === "ok" && row.rank !== null);
    const fitting = ranked.filter((row) => PM.meets(row) === true).sort(order(section));
    const unknown = ranked.filter((row) => PM.meets(row) === null).length;
    PM.advised = fitting.slice(0, 2).map((row) => row.id);
    const lines = [];
    if (!ranked.length) {
      const reasons = section.rows.some((row) => row.marks.length) ? "every row is marked, see its note" : "no stored samples to test";
      lines.push(PM.make("p", {}, `No recommendation: no row of this table is ranked (${reasons}). The Pareto front below uses the numbers alone.`));
    } else if (!fitting.length) {
      lines.push(PM.make("p", {}, `No ranked row meets every limit${unknown ? `; ${unknown} have no reading and could not be judged` : ""}. The nearest limit to relax: ${nearest(section, ranked)}`));
    } else {
      const [first, second] = fitting;
      lines.push(PM.make("p", { class: "answer" }, link(section, first)));
      lines.push(PM.make("p", {}, why(section, first, fitting, ranked.length)));
      lines.push(PM.make("p", { class: "soft" }, "Runner-up: ", ...(second ? [link(section, second), `, ${against(section, first, second)}`] : ["none, no other row meets your limits."])));
      const set = Object.keys(limits).length;
      lines.push(PM.make("p", { class: "soft small" }, set
        ? `${fitting.length} of ${ranked.length} ranked rows meet your limits${unknown ? `; ${unknown} have no reading and are left out` : ""}.`
        : `No limit is set: all ${ranked.length} ranked rows are considered.`));
    }
    box.replaceChildren(...lines);
  };

  const nearest = (section, ranked) => {
    const needs = Object.keys(limits).map((kind) => {
      const values = ranked.map((row) => row.limits[kind]).filter((value) => value !== undefined && value !== null);
      const least = Math.min(...values);
      return least > limits[kind] ? `the least ${section.limits[kind].label} of any row is ${PM.number(least / SIZE[kind])} ${UNIT[kind] || section.limits[kind].unit}.` : "";
    });
    return needs.find((text) => text) || "each limit alone can be met, all together cannot.";
  };
})();
