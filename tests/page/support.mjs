// Servers and pages for the tests.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createRequire } from "node:module";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { chromium } from "playwright-core";

const { ARGES, CHROMIUM, WORK } = process.env;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

// Runs `arges serve`; `address` is where. With `random`, over a model that writes for as long as it is let.
export async function serve({ random = false, args = [] } = {}) {
  const port = await freePort();
  const address = `http://127.0.0.1:${port}`;
  if (random) {
    const model = `${WORK}/model`;
    rmSync(model, { recursive: true, force: true });
    execFileSync(ARGES, ["synth", model, "--hidden", "64", "--layers", "8", "--vocab", "512"], { stdio: "ignore" });
    args = ["--model", model, "--context", "8192", ...args];
  }
  const child = spawn(ARGES, ["serve", "--port", String(port), ...args], { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  child.stderr.on("data", (data) => (log += data));
  for (const end = Date.now() + 120_000; ; await new Promise((resume) => setTimeout(resume, 50))) {
    const ready = await fetch(`${address}/ready`).then((reply) => reply.ok, () => false);
    if (ready) break;
    if (child.exitCode !== null || Date.now() > end) throw new Error(`the server did not start:\n${log}`);
  }
  const stop = () => new Promise((resolve) => {
    child.once("exit", resolve);
    child.kill("SIGTERM");
  });
  return { address, stop };
}

// A file of MCP servers with the one of tools.mjs.
export function toolServer() {
  const path = `${WORK}/mcp.json`;
  const models = { command: process.execPath, args: [`${WORK}/tools.mjs`], alwaysAllow: ["watch_model"] };
  writeFileSync(path, JSON.stringify({ mcpServers: { models } }));
  return path;
}

let browser;

export async function closeBrowser() {
  await browser?.close();
}

// Opens the page, as a reader of its own. `close` fails if the browser had anything to complain about, or asked anyone
// but the server.
export async function open(address, { dark = false, width = 1280, height = 860, tolerates = [] } = {}) {
  browser ??= await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: dark ? "dark" : "light" });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(`${address}/`)) complaints.push(`asked for ${request.url()}`);
  });
  await page.goto(`${address}/`);
  await page.locator("#prompt").waitFor();
  const close = async () => {
    const left = complaints.filter((text) => !tolerates.some((tolerated) => text.includes(tolerated)));
    assert.deepEqual(left, []);
    await context.close();
  };
  return { page, close };
}

export async function ask(page, text) {
  await page.locator("#prompt").fill(text);
  await page.locator("#prompt").press("Enter");
}

// Waits until the last answer has ended.
export async function answered(page, state = "false") {
  await page.locator(`.assistant:last-child[aria-busy="${state}"]`).waitFor({ timeout: 60_000 });
}

export async function picture(page, name) {
  await page.screenshot({ path: `${WORK}/pictures/${name}.png`, animations: "disabled" });
}

// What axe finds wrong for readers who do not see, or do not see well.
export async function accessible(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run());
  const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 120)).join(" | ")}`);
  assert.deepEqual(told, []);
}

// Nothing is wider than the window.
export async function fits(page) {
  const [inner, wide] = await page.evaluate(() => [innerWidth, document.documentElement.scrollWidth]);
  assert.ok(wide <= inner, `${wide} px in a window of ${inner}`);
}

// Puts a conversation into the browser's database, as if it had been had.
export async function remember(page, turns, title = "A conversation") {
  await page.evaluate(([turns, title]) => new Promise((resolve, reject) => {
    const request = indexedDB.open("arges", 1);
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const transaction = request.result.transaction("conversations", "readwrite");
      transaction.objectStore("conversations").put({ id: title, title, updated: Date.now(), turns });
      transaction.oncomplete = resolve;
    };
  }), [turns, title]);
  await page.reload();
  const folded = page.locator("#open-sidebar");
  if (await folded.isVisible()) await folded.click();
  await page.locator("#conversations .open", { hasText: title }).click();
}
