// Plots in the page's own ink: one layout, redrawn when the theme changes.
"use strict";
(() => {
  const PM = window.PM;
  const drawn = new Map();
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  PM.ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  PM.colours = () => ["a", "b", "c", "d", "e", "f", "g"].map((letter) => PM.ink(`series-${letter}`));

  const axis = (title, extra) => ({
    title: { text: PM.escape(title), standoff: 8 },
    gridcolor: PM.ink("line"), linecolor: PM.ink("faint"), zeroline: false, ticks: "outside", tickcolor: PM.ink("line"),
    automargin: true, ...extra,
  });

  // describe() gives { traces, x, y, xExtra, yExtra, legend } again for each theme
  PM.plot = (element, describe) => {
    const paint = () => {
      const { traces, x, y, xExtra, yExtra, legend, annotations, shapes } = describe();
      const layout = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: PM.ink("soft") },
        margin: { l: 56, r: 12, t: 8, b: 48 },
        xaxis: axis(x, xExtra), yaxis: axis(y, yExtra),
        showlegend: Boolean(legend), legend: { orientation: "h", y: -0.22, font: { size: 11 } },
        hoverlabel: { bgcolor: PM.ink("raised"), bordercolor: PM.ink("line"), font: { color: PM.ink("ink") }, align: "left" },
        hovermode: "closest", annotations: annotations || [], shapes: shapes || [],
      };
      window.Plotly.react(element, traces, layout, CONFIG);
    };
    drawn.set(element, paint);
    paint();
  };
  document.addEventListener("theme", () => drawn.forEach((paint) => paint()));
})();
