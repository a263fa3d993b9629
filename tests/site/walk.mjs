// One walk of a real browser through a site; writes what it saw as JSON. What should be seen stands in test_browser.py.
// Usage: node walk.mjs CHROMIUM SITE OUT.json
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { open } from "./browser.mjs";

const [executable, site, out] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const address = (path) => { const [file, hash] = path.split("#"); return pathToFileURL(join(site, file)).href + (hash === undefined ? "" : `#${hash}`); };
const { page, context, seen, close } = await open(executable);
const saw = {};

const go = async (path) => {
  await page.goto("about:blank"); // so that a change of the hash alone loads the page anew
  await page.goto(address(path));
};
const count = () => page.locator("#count").textContent();
const hash = () => page.evaluate(() => location.hash);
const settle = () => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
const column = (name) => page.evaluate((key) => {
  const at = PM.grid.visible.indexOf(key);
  return [...document.querySelectorAll("#grid tbody tr:not(.band):not(.spacer)")].map((line) => line.cells[at].textContent.trim());
}, name);
const bands = () => page.locator("#grid tr.band").allTextContents();
const fill = async (selector, text) => { await page.fill(selector, text); await settle(); };

const check = async (path, theme) => {
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.filter((one) => ["serious", "critical"].includes(one.impact)).map((one) => `${path} (${theme}): ${one.id}: ${one.nodes.slice(0, 3).map((node) => node.target.join(" ")).join(", ")}`);
};

// --- overview and board
await go("index.html");
saw.boards = await page.locator("h2 a").allTextContents();
saw.cards = await page.locator(".card").evaluateAll((cards) => cards.map((card) => card.innerText));
saw.thumbnails = await page.locator(".card .thumb circle.front").count();
await page.locator("h2 a").filter({ hasText: "quickstart" }).click();
await page.waitForFunction(() => document.getElementById("count")?.textContent.includes("of"));
saw.board = { title: await page.title(), count: await count(), advice: await page.locator("#advice").innerText(), columns: await page.evaluate(() => PM.grid.visible), bands: await bands() };
const questions = () => page.locator("#limits .limit:visible label").allTextContents();
saw.cpuQuestions = await questions();
await page.waitForSelector("#front .point");
saw.frontMarks = await page.locator("#front .drawn .point").count();
saw.errorBars = await page.locator("#front .bar").count();
saw.frontNames = await page.locator("#front .names text").allTextContents();
await page.selectOption("#colour-by", "method");
saw.legend = await page.locator("#front .legend button").allTextContents();
await page.locator("#front .legend button").first().click();
saw.legendHides = { count: await count(), marks: await page.locator("#front .drawn .point").count() };
await page.locator("#front .legend button").first().click();
saw.sticky = await page.evaluate(() => {
  const box = document.getElementById("grid");
  box.style.width = "420px";
  box.scrollLeft = 500;
  const line = box.querySelector("tbody tr:not(.band)");
  const at = (cell) => Math.round(cell.getBoundingClientRect().left - box.getBoundingClientRect().left);
  const places = [at(line.cells[0]), at(line.cells[1])];
  const scrolled = box.scrollLeft;
  box.style.width = "";
  return { places, scrolled };
});

// --- sort, by mouse and by keyboard
await page.click('#grid [data-key="step_ms"]');
await page.waitForFunction(() => location.hash.includes("step_ms"));
saw.sorted = { values: await column("step_ms"), hash: await hash() };
await page.click('#grid [data-key="step_ms"]');
saw.sortedDown = await column("step_ms");
await page.locator('#grid [data-key="latency_ms"]').focus();
await page.keyboard.press("Enter");
await page.waitForFunction(() => location.hash.includes("latency_ms"));
saw.sortedByKey = await column("latency_ms");

// --- search, front only, a filter of two conditions' worth of clicks, a permanent link
await go("quickstart/index.html");
await fill("#search", "lora nf4");
saw.searched = { count: await count(), methods: await column("quantization"), hash: await hash() };
await fill("#search", "");
await page.check("#front-only");
saw.frontOnly = { count: await count(), front: await page.evaluate(() => PM.section.rows.filter((row) => row.front).length) };
await page.uncheck("#front-only");
await page.click('#facets [data-facet="quantization"][data-value="nf4"]');
await settle();
saw.filterAxe = await check("filters", "light");
saw.filtered = { count: await count(), quantizations: [...new Set(await column("quantization"))], link: await hash() };
await go(`quickstart/index.html${saw.filtered.link}`);
saw.linked = { count: await count(), quantizations: [...new Set(await column("quantization"))] };

// --- columns and CSV
await go("quickstart/index.html");
await page.click("#columns > summary");
await page.check('#columns input[value="adapter_bytes"]');
saw.added = await page.locator('#grid [data-key="adapter_bytes"]').count();
await page.uncheck('#columns input[value="latency_ms"]');
saw.hidden = { header: await page.locator('#grid [data-key="latency_ms"]').count(), hash: await hash() };
saw.csv = await page.evaluate(() => PM.csv());
const [file] = await Promise.all([page.waitForEvent("download"), page.click("#csv")]);
saw.download = file.suggestedFilename();

// --- the reader's limits, where everything was measured
await go("gpu/index.html");
saw.gpuQuestions = await questions();
saw.free = await page.locator("#advice").innerText();
await fill("#limit-memory", "12");
saw.limited = { advice: await page.locator("#advice").innerText(), count: await count(), hash: await hash(), slider: await page.inputValue('[data-range="memory"]') };
await fill("#limit-memory", "1");
saw.impossible = await page.locator("#advice").innerText();
await fill("#limit-memory", "");
await page.locator('[data-range="latency"]').focus();
await page.keyboard.press("Home");
await settle();
saw.slid = { value: await page.inputValue("#limit-latency"), count: await count() };
await go("gpu/index.html#memory=12");
saw.limitedByLink = { advice: await page.locator("#advice").innerText(), count: await count() };

// --- weights: off, then moved
saw.scoreBefore = await page.locator('#grid [data-key="weighed"]').count();
await page.click("#weights > summary");
await page.locator('[id="weight-accuracy"]').focus();
await page.keyboard.press("End");
await settle();
saw.weighed = { header: await page.locator('#grid [data-key="weighed"]').count(), hash: await hash(), advice: await page.locator("#advice").innerText() };

// --- compare, cell, back
await go("quickstart/index.html");
await page.locator(".picked").nth(0).check();
await page.locator(".picked").nth(2).check();
await page.click("#compare");
await page.waitForSelector(".comparison");
saw.compared = { heads: await page.locator(".comparison thead a").allTextContents(), groups: await page.locator(".comparison .group").allTextContents(), text: await page.locator(".comparison").innerText(), tests: await page.locator(".test").allTextContents(), note: await page.locator("#tests").textContent() };
await page.selectOption("#add", { index: 1 });
saw.comparedThree = await page.locator(".comparison thead a").count();
saw.noteOfThree = await page.locator("#tests").textContent();
await page.locator(".comparison thead a").first().click();
await page.waitForSelector("#seeds-title");
saw.rowPage = { text: await page.locator("main").innerText(), seeds: await page.locator("main tbody tr").count() };
await page.locator("main tbody a").first().click();
await page.waitForSelector("#samples tbody tr");
saw.cellOrder = await page.locator("h1, .facts, h2").evaluateAll((all) => all.map((one) => (one.classList.contains("facts") ? "result" : one.id || "title")));
saw.cell = { title: await page.locator("h1").innerText(), stages: await page.locator(".stages tbody tr").count(), note: await page.locator("#samples-note").textContent(), command: await page.locator(".command").textContent() };
await page.click("#copy");
await page.waitForFunction(() => document.getElementById("copy").textContent !== "Copy");
saw.copied = await page.evaluate(() => [document.getElementById("copy").textContent, getSelection().toString()]);
await page.check("#wrong");
saw.wrongOnly = await page.locator("#samples .yes").count();
await go("index.html");
await fill("#everything", "dora nf4");
saw.found = { count: await page.locator("#found-count").textContent(), rows: await page.locator("#found tbody th").allTextContents() };
await page.locator("#found tbody tr").first().locator("a").last().click();
saw.methodPage = { title: await page.locator("h1").innerText(), rows: await page.locator("tbody tr").count() };
await go("quickstart/failures.html");
saw.reasons = await page.locator("summary bdi").allTextContents();
await fill("#needle", "memory");
saw.reasonsKept = await page.locator("[data-entry]:visible").count();
saw.tabs = await page.locator(".tabs a").allTextContents();

// --- every page: width, accessibility, both themes
const first = (folder) => `${folder}/cells/${readdirSync(join(site, folder, "cells")).filter((name) => name.endsWith(".html")).sort()[0]}`;
const hostile = readdirSync(site).find((name) => name.includes("script"));
const pages = ["index.html", "plain.html", "claims.html", ...["index", "matrix", "compare", "tuning", "trends", "failures", "about"].map((name) => `quickstart/${name}.html`), first("quickstart"), first("gpu"), `gpu/rows/${readdirSync(join(site, "gpu", "rows"))[0]}`, "methods/lora.html", ...["index", "matrix", "failures", "about"].map((name) => `${hostile}/${name}.html`), first(hostile)];
saw.widths = {};
saw.axe = [];
await page.setViewportSize({ width: 390, height: 844 });
for (const path of pages) {
  await go(path);
  await settle();
  saw.widths[path] = await page.evaluate(() => document.scrollingElement.scrollWidth);
  if (!path.includes("script") || path.endsWith("/index.html")) saw.axe.push(...(await check(path, "light, 390 px")));
}
await page.setViewportSize({ width: 1280, height: 900 });
await go("quickstart/index.html");
const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
saw.light = await paper();
await page.click("#theme");
saw.dark = await paper();
for (const path of ["quickstart/index.html", "quickstart/matrix.html", "quickstart/trends.html", first("quickstart"), "index.html"]) {
  await go(path);
  await settle();
  saw.darkKept = await paper();
  saw.axe.push(...(await check(path, "dark")));
}
await page.click("#theme");

// --- keyboard: the first stops of the tab key, an explanation on focus
await go("quickstart/index.html");
saw.stops = [];
for (let stop = 0; stop < 4; stop += 1) {
  await page.keyboard.press("Tab");
  saw.stops.push(await page.evaluate(() => document.activeElement.textContent.trim()));
}
await page.locator("#grid .sort").nth(3).hover();
saw.tip = await page.locator("#tip").innerText();

// --- hostile text
saw.hostile = {};
for (const path of [`${hostile}/index.html`, `${hostile}/matrix.html`, `${hostile}/failures.html`, first(hostile)]) {
  await go(path);
  await settle();
  saw.hostile[path] = { text: (await page.locator("body").innerText()).slice(0, 60_000), images: await page.locator('img[src="x"]').count(), scripts: await page.locator("script:not([src])").count(), size: (await page.content()).length };
}
await go(`${hostile}/index.html`);
await fill("#search", "<script>");
saw.hostile.filter = { count: await count(), images: await page.locator('img[src="x"]').count(), scripts: await page.locator("script:not([src])").count() };
await fill("#search", "");
saw.hostile.csv = await page.evaluate(() => PM.csv());
const ids = await page.evaluate(() => PM.section.rows.map((row) => row.id).join(","));
await go(`${hostile}/compare.html#rows=${ids}`);
saw.hostile.compare = { text: await page.locator("body").innerText(), images: await page.locator('img[src="x"]').count() };

// --- 10,000 rows: first paint and a filter
await go("big/index.html");
await page.waitForFunction(() => document.getElementById("count").textContent.includes("10,000"));
saw.big = await page.evaluate(async () => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null;
  const ready = performance.now();
  const times = [];
  for (const text of ["lora", "dora nf4", "int8", ""]) {
    const search = document.getElementById("search");
    const begin = performance.now();
    search.value = text;
    search.dispatchEvent(new Event("input"));
    times.push(performance.now() - begin);
  }
  const begin = performance.now();
  document.getElementById("front-only").click();
  times.push(performance.now() - begin);
  return { paint_ms: paint, rows_ready_ms: ready, filter_ms: times, drawn: document.querySelectorAll("#grid tbody tr").length, count: document.getElementById("count").textContent };
});

saw.bigCaption = await page.locator("#front-caption").textContent();
await go("quickstart/matrix.html");
saw.scale = await page.locator("#scale").innerText();
saw.statusEdges = await page.locator("td.none").evaluateAll((cells) => cells.map((cell) => getComputedStyle(cell).textAlign));
await page.setViewportSize({ width: 1400, height: 900 });
await go("plain.html");
saw.plainWide = await page.evaluate(() => document.scrollingElement.scrollWidth);
await go("quickstart/index.html");
saw.rightEdges = await page.evaluate(() => ["#front", "#grid"].map((name) => Math.round(document.querySelector(name).getBoundingClientRect().right)));

// --- the weight of a board's page: bytes of every file it loads, processor time of its main thread
const cdp = await context.newCDPSession(page);
await cdp.send("Performance.enable");
const task = async () => (await cdp.send("Performance.getMetrics")).metrics.find((one) => one.name === "TaskDuration").value;
await page.goto("about:blank");
const begun = await task();
const asked = seen.requests.length;
await page.goto(address("quickstart/index.html"));
await page.waitForSelector("#front .point");
await settle();
saw.weight = { cpu_s: (await task()) - begun, bytes: [...new Set(seen.requests.slice(asked).filter((url) => url.startsWith("file:")))].reduce((sum, url) => sum + readFileSync(new URL(url)).length, 0) };

saw.errors = seen.errors;
saw.dialogs = seen.dialogs;
saw.requests = seen.requests.filter((url) => !/^(file|data|blob|about):/.test(url));
saw.files = seen.requests.filter((url) => url.startsWith("file:")).length;
writeFileSync(out, JSON.stringify(saw, null, 1));
await close();
