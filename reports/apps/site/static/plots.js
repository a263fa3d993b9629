// Plots as SVG in the page's own colours: points with bars, lines, names that do not overlap, a legend that filters.
"use strict";
(() => {
  const PM = window.PM;
  const SVG = "http://www.w3.org/2000/svg";
  const LETTERS = ["a", "b", "c", "d", "e", "f", "g"];
  const SHAPES = {
    circle: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
    square: (r) => `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    diamond: (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0z`,
    up: (r) => `M0 ${-1.2 * r}L${1.2 * r} ${r}H${-1.2 * r}z`,
    down: (r) => `M0 ${1.2 * r}L${1.2 * r} ${-r}H${-1.2 * r}z`,
    cross: (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
    plus: (r) => `M${-1.2 * r} 0H${1.2 * r}M0 ${-1.2 * r}V${1.2 * r}`,
  };
  const SYMBOLS = Object.keys(SHAPES);
  PM.colour = (number) => `var(--series-${LETTERS[number % LETTERS.length]})`;
  PM.symbol = (number) => SYMBOLS[number % SYMBOLS.length];
  PM.mostColours = LETTERS.length;

  const make = (tag, attributes, ...children) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // --- ticks: round numbers, powers of ten with 2 and 5 between them, or days
  const ticks = (low, high, type) => {
    if (type === "log") {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
        for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
      }
      const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
      return inside.length > 7 ? inside.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9) : inside;
    }
    const span = high - low || 1;
    const raw = span / 5;
    const size = 10 ** Math.floor(Math.log10(raw));
    const step = type === "date" ? Math.max(864e5, Math.ceil(raw / 864e5) * 864e5) : [1, 2, 5, 10].map((k) => k * size).find((one) => one >= raw);
    const out = [];
    for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) out.push(Math.abs(value) < step / 1e6 ? 0 : value);
    return out;
  };
  const COMPACT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 }); // 50M, not 5e+7
  const tickText = (value, type) => {
    if (type === "date") return new Date(value).toISOString().slice(0, 10);
    if (type === "log") return value < 1e-3 || value >= 1e5 ? value.toExponential(0).replace("-", "−") : String(Number(value.toPrecision(6)));
    if (Math.abs(value) >= 1e5) return COMPACT.format(value).replace("-", "−");
    return PM.number(value, 6);
  };

  const range = (values, { type, zero }) => {
    const numbers = values.filter((value) => Number.isFinite(value) && (type !== "log" || value > 0));
    if (!numbers.length) return null;
    let [low, high] = [numbers.reduce((a, b) => Math.min(a, b)), numbers.reduce((a, b) => Math.max(a, b))];
    if (type === "log") { const pad = (high / low) ** 0.06 || 1.2; return low === high ? [low / 2, high * 2] : [low / pad, high * pad]; }
    if (zero) low = Math.min(0, low);
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low - (zero && low === 0 ? 0 : pad), high + pad];
  };

  // spec: { x, y: {label, type, zero}, series: [{name, colour, symbol, line, points: [{x, y, xl, xh, yl, yh, tip, href, big,
  // ring, faint, hollow, label}]}], legend, toggled }. A point's bars are optional.
  PM.plot = (element, spec) => {
    element.hiddenSeries ||= new Set();
    const names = new Set(spec.series.map((one) => one.name));
    element.hiddenSeries.forEach((name) => { if (!names.has(name)) element.hiddenSeries.delete(name); });
    const paint = () => draw(element, spec);
    if (!element.watched) {
      element.watched = new ResizeObserver(() => { if (element.clientWidth !== element.drawnWidth) element.paint(); });
      element.watched.observe(element);
    }
    element.paint = paint;
    paint();
  };

  const draw = (element, spec) => {
    const series = spec.series.filter((one) => !element.hiddenSeries.has(one.name));
    const points = series.flatMap((one) => one.points);
    const width = Math.max(280, element.clientWidth || 640);
    const height = element.classList.contains("small") ? 250 : Math.min(400, Math.max(300, width * 0.5));
    element.drawnWidth = element.clientWidth;
    const edge = { left: 56, right: 14, top: 10, bottom: 46 };
    const xs = range(points.map((p) => p.x), spec.x);
    const ys = range(points.flatMap((p) => [p.y, p.yl, p.yh].filter((v) => v !== undefined && v !== null)), spec.y);
    const parts = [];
    if (xs && ys) {
      const position = ([low, high], type, from, to) => (value) => {
        const share = type === "log" ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
        return from + (to - from) * Math.min(1.02, Math.max(-0.02, share));
      };
      const px = position(xs, spec.x.type, edge.left, width - edge.right);
      const py = position(ys, spec.y.type, height - edge.bottom, edge.top);
      parts.push(axes(spec, xs, ys, px, py, width, height, edge));
      const taken = [];
      const marks = make("g", {});
      for (const one of series) marks.append(lineOf(one, px, py), ...one.points.filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y)).map((p) => mark(one, p, px, py, taken)));
      parts.push(marks, labels(points, px, py, taken, width, edge));
    }
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "drawn", role: "presentation" }, ...parts);
    element.replaceChildren(svg, ...(spec.legend ? [legend(element, spec)] : []));
    if (!xs || !ys) element.prepend(PM.make("p", { class: "soft" }, "No values to draw."));
  };

  const axes = (spec, xs, ys, px, py, width, height, edge) => {
    const group = make("g", { class: "axes" });
    const bottom = height - edge.bottom;
    for (const value of ticks(...ys, spec.y.type)) {
      group.append(make("path", { class: "rule", d: `M${edge.left} ${py(value)}H${width - edge.right}` }), make("text", { x: edge.left - 7, y: py(value) + 4, "text-anchor": "end" }, tickText(value, spec.y.type)));
    }
    let last = -1e9;
    for (const value of ticks(...xs, spec.x.type)) {
      const [at, text] = [px(value), tickText(value, spec.x.type)];
      group.append(make("path", { class: "rule", d: `M${at} ${edge.top}V${bottom}` }));
      if (at - last > text.length * 7 + 8) { group.append(make("text", { x: at, y: bottom + 16, "text-anchor": "middle" }, text)); last = at; }
    }
    group.append(make("path", { class: "frame", d: `M${edge.left} ${edge.top}V${bottom}H${width - edge.right}` }));
    group.append(make("text", { class: "title", x: (edge.left + width - edge.right) / 2, y: height - 8, "text-anchor": "middle" }, spec.x.label));
    group.append(make("text", { class: "title", transform: `translate(13 ${(edge.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, spec.y.label));
    return group;
  };

  const lineOf = (one, px, py) => {
    if (!one.line) return make("g", {});
    const found = one.points.filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y));
    const path = found.map((p, at) => `${at ? (one.line === "step" ? `H${px(p.x).toFixed(1)}V${py(p.y).toFixed(1)}` : `L${px(p.x).toFixed(1)} ${py(p.y).toFixed(1)}`) : `M${px(p.x).toFixed(1)} ${py(p.y).toFixed(1)}`}`);
    return make("path", { class: "line", d: path.join(""), style: `stroke:${one.colour}` });
  };

  const mark = (one, p, px, py, taken) => {
    const [x, y] = [px(p.x), py(p.y)];
    const group = make("g", { class: `mark${p.faint ? " faint" : ""}`, style: `--c:${p.colour || one.colour}` });
    const bar = (d) => group.append(make("path", { class: "bar", d }));
    if (p.xl !== undefined) bar(`M${px(p.xl).toFixed(1)} ${y.toFixed(1)}H${px(p.xh).toFixed(1)}`);
    if (p.yl !== undefined) bar(`M${x.toFixed(1)} ${py(p.yl).toFixed(1)}V${py(p.yh).toFixed(1)}`);
    if (p.plain) return group;
    const open = p.hollow || ["cross", "plus"].includes(one.symbol);
    const shape = make("path", { class: `point${open ? " open" : ""}`, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, d: SHAPES[one.symbol || "circle"](p.big ? 5.5 : 3.6), "data-tip": p.tip });
    if (p.ring) group.append(make("circle", { class: "ring", cx: x, cy: y, r: 11 }));
    group.append(p.href ? make("a", { href: p.href, tabindex: p.label ? "0" : "-1", "aria-label": p.tip }, shape) : shape);
    taken.push([x - 4, y - 4, x + 4, y + 4]);
    return group;
  };

  // the name of a point at the first of eight places around it that is free; a name without a free place is left out
  const labels = (points, px, py, taken, width, edge) => {
    const group = make("g", { class: "names" });
    const places = [[8, 4, 0], [-8, 4, 1], [0, -9, 2], [0, 17, 2], [8, -7, 0], [8, 15, 0], [-8, -7, 1], [-8, 15, 1]];
    for (const p of points.filter((one) => one.label && Number.isFinite(one.x) && Number.isFinite(one.y))) {
      const text = p.label.length > 26 ? `${p.label.slice(0, 25)}…` : p.label;
      const size = text.length * 6.6;
      for (const [dx, dy, side] of places) {
        const left = px(p.x) + dx - (side === 1 ? size : side === 2 ? size / 2 : 0);
        const box = [left, py(p.y) + dy - 10, left + size, py(p.y) + dy + 3];
        if (box[0] < edge.left || box[2] > width - 2 || box[1] < 0 || taken.some((one) => box[0] < one[2] && box[2] > one[0] && box[1] < one[3] && box[3] > one[1])) continue;
        taken.push(box);
        group.append(make("text", { x: left, y: py(p.y) + dy }, text));
        break;
      }
    }
    return group;
  };

  const legend = (element, spec) => {
    const box = PM.make("div", { class: "legend", role: "group", "aria-label": "Legend: press a name to hide or show it" });
    for (const one of spec.series) {
      const swatch = make("svg", { width: 14, height: 12, "aria-hidden": "true" }, make("g", { class: "mark", style: `--c:${one.colour}` }, make("path", { class: `point${["cross", "plus"].includes(one.symbol) ? " open" : ""}`, transform: "translate(7 6)", d: SHAPES[one.symbol || "circle"](4) })));
      const button = PM.make("button", { type: "button", "aria-pressed": String(!element.hiddenSeries.has(one.name)) }, swatch, PM.make("bdi", {}, one.name));
      button.addEventListener("click", () => {
        if (!element.hiddenSeries.delete(one.name)) element.hiddenSeries.add(one.name);
        element.paint();
        spec.toggled?.(element.hiddenSeries);
        [...element.querySelectorAll(".legend button")].find((other) => other.textContent === one.name)?.focus();
      });
      box.append(button);
    }
    return box;
  };
})();
