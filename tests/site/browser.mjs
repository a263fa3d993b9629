// Starts the system's chromium once, with nothing of the user's, and hands out pages that watch themselves.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--allow-file-access-from-files=false",
];

export const open = async (executablePath) => {
  const profile = mkdtempSync(join(tmpdir(), "peft-matrix-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath, args: FLAGS, headless: true, chromiumSandbox: false, acceptDownloads: true,
    viewport: { width: 1280, height: 900 }, timeout: 60_000,
  });
  context.setDefaultTimeout(20_000);
  const seen = { errors: [], requests: [], dialogs: 0 };
  context.on("request", (request) => seen.requests.push(request.url()));
  const watch = (page) => {
    page.on("console", (message) => { if (["error", "warning"].includes(message.type())) seen.errors.push(`${page.url()}: ${message.text()}`); });
    page.on("pageerror", (error) => seen.errors.push(`${page.url()}: ${error}`));
    page.on("dialog", (dialog) => { seen.dialogs += 1; dialog.dismiss(); });
    return page;
  };
  const page = watch(context.pages()[0] ?? (await context.newPage()));
  return { context, page, seen, close: async () => { await context.close(); rmSync(profile, { recursive: true, force: true }); } };
};
