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
const column = (name) => page.evaluate((key) => PM.grid.column(`${key}:name`, { search: "applied", order: "applied" }).nodes().toArray().map((cell) => cell.textContent.trim()), name);
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
saw.board = { title: await page.title(), count: await count(), advice: await page.locator("#advice").innerText(), headers: await page.locator(".dt-scroll-head th").count() };
const questions = () => page.locator("#limits .limit:visible label").allTextContents();
saw.cpuQuestions = await questions();
await page.waitForSelector("#front .scatterlayer .point");
saw.frontMarks = await page.locator("#front .scatterlayer .point").count();
saw.errorBars = await page.locator("#front .errorbars path").count();

// --- sort, by mouse and by keyboard
const head = page.locator('.dt-scroll-head th:has-text("step") .dt-column-order').first();
await head.click();
await page.waitForFunction(() => location.hash.includes("step_ms"));
saw.sorted = { values: await column("step_ms"), hash: await hash() };
await page.locator('.dt-scroll-head th:has-text("adapter size") [role="button"], .dt-scroll-head th:has-text("adapter size")[tabindex]').first().focus();
await page.keyboard.press("Enter");
await page.waitForFunction(() => location.hash.includes("adapter_bytes"));
saw.sortedByKey = await column("adapter_bytes");

// --- search, front only, a filter of two conditions' worth of clicks, a permanent link
await go("quickstart/index.html");
await fill("#search", "lora nf4");
saw.searched = { count: await count(), methods: await column("quantization"), hash: await hash() };
await fill("#search", "");
await page.check("#front-only");
saw.frontOnly = { count: await count(), front: await page.evaluate(() => PM.section.rows.filter((row) => row.front).length) };
await page.uncheck("#front-only");
await page.click("#filters > summary");
await page.click("#builder button:has-text('Add a filter')");
await page.selectOption("#builder .dtsb-data", { label: "quantization" });
await page.selectOption("#builder .dtsb-condition", "=");
await page.selectOption("#builder .dtsb-value", "nf4");
await settle();
saw.filterAxe = await check("filters", "light");
saw.filtered = { count: await count(), quantizations: [...new Set(await column("quantization"))], link: await hash() };
await go(`quickstart/index.html${saw.filtered.link}`);
saw.linked = { count: await count(), quantizations: [...new Set(await column("quantization"))] };

// --- columns and CSV
await go("quickstart/index.html");
await page.click("#columns > summary");
await page.uncheck('#columns input[value="adapter_bytes"]');
saw.hidden = { header: await page.locator('.dt-scroll-head th:has-text("adapter size")').count(), hash: await hash() };
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
saw.scoreBefore = await page.locator('.dt-scroll-head th:has-text("score")').count();
await page.click("#weights > summary");
await page.locator('[id="weight-accuracy"]').focus();
await page.keyboard.press("End");
await settle();
saw.weighed = { header: await page.locator('.dt-scroll-head th:has-text("score")').count(), hash: await hash(), advice: await page.locator("#advice").innerText() };

// --- compare, cell, back
await go("quickstart/index.html");
await page.locator(".picked").nth(0).check();
await page.locator(".picked").nth(2).check();
await page.click("#compare");
await page.waitForSelector(".comparison");
saw.compared = { heads: await page.locator(".comparison thead a").allTextContents(), groups: await page.locator(".comparison .group").allTextContents(), text: await page.locator(".comparison").innerText() };
await page.selectOption("#add", { index: 1 });
saw.comparedThree = await page.locator(".comparison thead a").count();
await page.locator(".comparison thead a").first().click();
await page.waitForSelector("#samples tbody tr");
saw.cell = { title: await page.locator("h1").innerText(), stages: await page.locator(".stages tbody tr").count(), samples: await page.locator("#samples tbody tr").count(), note: await page.locator("#samples-note").textContent(), command: await page.locator(".command").textContent() };
await page.check("#wrong");
saw.wrongOnly = await page.locator("#samples .yes").count();

// --- every page: width, accessibility, both themes
const first = (folder) => `${folder}/cells/${readdirSync(join(site, folder, "cells")).filter((name) => name.endsWith(".html")).sort()[0]}`;
const hostile = readdirSync(site).find((name) => name.includes("script"));
const pages = ["index.html", "claims.html", ...["index", "matrix", "compare", "tuning", "trends", "failures", "about"].map((name) => `quickstart/${name}.html`), first("quickstart"), first("gpu"), ...["index", "matrix", "failures", "about"].map((name) => `${hostile}/${name}.html`), first(hostile)];
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
for (const path of ["quickstart/index.html", "quickstart/matrix.html", first("quickstart"), "index.html"]) {
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
await page.locator(".dt-scroll-head th[data-tip]").nth(3).hover();
saw.tip = await page.locator("#tip").innerText();

// --- hostile text
saw.hostile = {};
for (const path of [`${hostile}/index.html`, `${hostile}/matrix.html`, `${hostile}/failures.html`, first(hostile)]) {
  await go(path);
  await settle();
  saw.hostile[path] = { text: (await page.locator("body").innerText()).slice(0, 60_000), images: await page.locator('img[src="x"]').count(), scripts: await page.locator("script:not([src])").count(), size: (await page.content()).length };
}
await go(`${hostile}/index.html`);
await page.click("#filters > summary");
await page.click("#builder button:has-text('Add a filter')");
await page.selectOption("#builder .dtsb-data", { label: "method" });
await page.selectOption("#builder .dtsb-condition", "=");
saw.hostile.filter = { options: await page.locator("#builder .dtsb-value option").allTextContents(), images: await page.locator('img[src="x"]').count(), scripts: await page.locator("script:not([src])").count() };
await page.selectOption("#builder .dtsb-value", "<script>alert(1)</script>");
await settle();
saw.hostile.filter.count = await count();
await page.click("#builder .dtsb-clearAll");
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
  return { paint_ms: paint, rows_ready_ms: ready, filter_ms: times, drawn: document.querySelectorAll(".dt-scroll-body tbody tr").length, count: document.getElementById("count").textContent };
});

saw.errors = seen.errors;
saw.dialogs = seen.dialogs;
saw.requests = seen.requests.filter((url) => !/^(file|data|blob|about):/.test(url));
saw.files = seen.requests.filter((url) => url.startsWith("file:")).length;
writeFileSync(out, JSON.stringify(saw, null, 1));
await close();
