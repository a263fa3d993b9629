// The reader's three questions, and the row that answers them with its runner-up and the reason.
"use strict";
(() => {
  const PM = window.PM;
  const GIB = 2 ** 30;
  const KINDS = ["memory", "latency", "energy", "cost"];
  const SIZE = { memory: GIB, latency: 1, energy: 1, cost: 1 };
  const UNIT = { memory: "GiB", latency: "ms", energy: "J", cost: "" };

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
    const [least, most] = span(section, kind).map((value) => PM.number(value / SIZE[kind]));
    const without = section.rows.filter((row) => row.status === "ok" && (row.limits[kind] ?? null) === null).length;
    return `${section.limits[kind].label}: ${least}–${most} ${UNIT[kind] || section.limits[kind].unit} here.${without ? ` ${without} rows have no reading.` : ""}`;
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

  // only what was measured is asked about
  PM.showLimits = (section) => {
    for (const kind of KINDS) {
      const found = section.limits[kind];
      const box = document.querySelector(`[data-limit="${kind}"]`);
      const input = document.getElementById(`limit-${kind}`);
      box.hidden = found.metric === null;
      input.disabled = box.hidden;
      if (box.hidden) { input.value = ""; delete limits[kind]; continue; }
      box.querySelector("label").textContent = found.question;
      box.querySelector(".unit-of").textContent = found.after;
      box.querySelector("[data-range]").setAttribute("aria-label", `${found.question}: slider`);
      document.getElementById(`note-${kind}`).textContent = note(section, kind);
      input.value = PM.state().get(kind) ?? input.value;
      place(kind);
    }
    document.getElementById("limits").hidden = KINDS.every((kind) => section.limits[kind].metric === null);
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
      if (a.forgets !== b.forgets) return a.forgets ? 1 : -1;
      if (ours.text !== theirs.text) return (theirs.value - ours.value) * theirs.sign;
      return value(a) - value(b) || a.rank[1] - b.rank[1] || section.rows.indexOf(a) - section.rows.indexOf(b);
    };
  };

  const amount = (section, kind, row) =>
    `${PM.number(row.limits[kind] / SIZE[kind])} ${UNIT[kind] || section.limits[kind].unit} ${section.limits[kind].label}`;

  const link = (section, row) => {
    const name = PM.make("bdi", {}, PM.rowName(section, row));
    return PM.make("a", { href: `rows/${row.page}.html` }, name);
  };

  const why = (section, row, fitting, total) => {
    const kind = cheapest(section);
    const metric = PM.board.columns.find((column) => column.key === PM.board.rank)?.label ?? PM.board.rank;
    if (PM.scores(section)) return `It has the highest score under the weights you set, of ${fitting.length} rows that meet your limits.`;
    const tied = fitting.filter((other) => other.rank[0] === row.rank[0]);
    const ranked = `${PM.rankText(row.rank)} of ${total} by ${metric}`;
    const best = row.rank[0] === 1
      ? `No row is known to be better (${ranked}).`
      : `Of the rows that meet your limits it has the best rank (${ranked}).`;
    if (tied.length < 2) return best;
    const keeping = tied.filter((other) => other.forgets === row.forgets);
    const equal = keeping.filter((other) => mean(other).text === mean(row).text);
    const keeps = !row.forgets && keeping.length < tied.length ? ` ${tied.length - keeping.length} of them forget and come after.` : "";
    const cheap = kind && row.limits[kind] !== undefined && row.limits[kind] !== null ? ` needs the least: ${amount(section, kind, row)}` : "";
    const choice = equal.length < 2
      ? `of these it has the best mean (${mean(row).text})`
      : `of these, ${equal.length} have the best mean (${mean(row).text})${cheap ? `, and among them it${cheap}` : ""}`;
    return `${best} ${tied.length} rows within your limits tie; ${choice}.${keeps}`;
  };

  const against = (section, row, other) => {
    const kind = cheapest(section);
    if (PM.scores(section)) return "the next score.";
    const parts = [PM.rankText(other.rank)];
    if (kind && other.limits[kind] !== undefined && other.limits[kind] !== null) parts.push(amount(section, kind, other));
    return `${parts.join(", ")}.`;
  };

  const facts = (section, row) => {
    const parts = [`${mean(row).text} ${PM.board.columns.find((column) => column.key === PM.board.rank)?.unit ?? ""}`.trim()];
    KINDS.filter((kind) => (row.limits[kind] ?? null) !== null).forEach((kind) => parts.push(amount(section, kind, row)));
    parts.push(row.kept === null ? "forgetting not measured" : `keeps ${Math.round(100 * row.kept)} % of the base's skills`);
    return parts.join(" · ");
  };

  PM.advise = (section) => {
    const box = document.getElementById("advice");
    const ranked = section.rows.filter((row) => row.status === "ok" && row.rank !== null && row.sound);
    const fitting = ranked.filter((row) => PM.meets(row) === true).sort(order(section));
    const unknown = ranked.filter((row) => PM.meets(row) === null).length;
    const set = Object.keys(limits).length;
    PM.advised = [];
    const lines = [PM.make("p", { class: "headline" }, PM.make("bdi", {}, section.answer.headline)), PM.make("p", {}, section.answer.reason)];
    const judged = section.answer.kind !== "nothing" || set || PM.scores(section);
    if (!ranked.length || !judged) {
      lines.push(PM.make("p", { class: "soft" }, "No row is recommended. The front and the table below show the numbers."));
    } else if (!fitting.length) {
      lines.push(PM.make("p", {}, `No ranked row that learned meets every limit${unknown ? `; ${unknown} have no reading and could not be judged` : ""}. The nearest limit to relax: ${nearest(section, ranked)}`));
    } else {
      const [first, second] = fitting;
      PM.advised = fitting.slice(0, 2).map((row) => row.id);
      lines.push(PM.make("p", { class: "answer" }, link(section, first)));
      lines.push(PM.make("p", {}, facts(section, first)));
      first.cautions.forEach((at) => lines.push(PM.make("p", { class: "caution" }, PM.make("bdi", {}, PM.text(section, at)))));
      lines.push(PM.make("p", {}, why(section, first, fitting, ranked.length)));
      lines.push(PM.make("p", { class: "soft" }, "Runner-up: ", ...(second ? [link(section, second), `, ${against(section, first, second)}`, ...second.cautions.map((at) => ` (${PM.text(section, at)})`)] : ["none, no other row meets your limits."])));
      if (set) lines.push(PM.make("p", { class: "soft small" }, `${fitting.length} of ${ranked.length} ranked rows that learned meet your limits${unknown ? `; ${unknown} have no reading and are left out` : ""}.`));
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
