// A filter over the failures.
"use strict";
(() => {
  const PM = window.PM;
  const needle = document.getElementById("needle");
  if (!needle) return;
  const lines = [...document.querySelectorAll("#failures tbody tr")];
  const filter = () => {
    const words = needle.value.toLowerCase().split(/\s+/).filter(Boolean);
    lines.forEach((line) => { line.hidden = !words.every((word) => line.textContent.toLowerCase().includes(word)); });
    document.getElementById("count").textContent = `${lines.filter((line) => !line.hidden).length} of ${lines.length}`;
  };
  needle.value = PM.state().get("q") || "";
  needle.addEventListener("input", () => { PM.remember({ q: needle.value }); filter(); });
  filter();
})();
