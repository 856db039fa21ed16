// The chat page against a real server: the model in the program for answers, a random one for what goes on and on.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { accessible, answered, ask, closeBrowser, fits, open, picture, remember, serve, toolServer } from "./support.mjs";
import { HOSTILE, RICH, RUNNING } from "./conversations.mjs";

const SUM = "What is 17 + 25?";
let nano;
let tools;
let random;

before(async () => {
  [nano, tools, random] = await Promise.all([serve(), serve({ args: ["--mcp", toolServer()] }), serve({ random: true })]);
});
after(async () => {
  await closeBrowser();
  await Promise.all([nano, tools, random].map((server) => server?.stop()));
});

const greedy = (page) => page.evaluate(() => localStorage.setItem("arges.settings", JSON.stringify({ temperature: "0" }))).then(() => page.reload());

// Has the model write for as long as it is let, whatever it meant to.
const endless = (page) => page.route("**/v1/chat/completions", (route) => {
  const body = { ...route.request().postDataJSON(), ignore_eos: true };
  return route.continue({ postData: JSON.stringify(body) });
});

describe("a conversation", () => {
  it("streams thinking, folded and counted, and the answer", async () => {
    const { page, close } = await open(nano.address);
    await greedy(page);
    await picture(page, "empty-light-wide");
    await accessible(page);
    assert.match(await page.locator("#model").textContent(), /nano/);
    await ask(page, SUM);
    await answered(page);
    const thinking = page.locator(".thinking");
    assert.equal(await thinking.getAttribute("open"), null);
    assert.match(await thinking.locator("summary").textContent(), /Thought.*\d+ tokens/);
    assert.equal(await thinking.locator(".thought").isVisible(), false);
    await thinking.locator("summary").click();
    assert.ok((await thinking.locator(".thought").textContent()).length > 3);
    assert.match(await page.locator(".assistant .text").textContent(), /42/);
    assert.match(await page.locator(".figures").textContent(), /\d+ tokens/);
    assert.match(await page.locator("#status").textContent(), /^Answer: .*42/);
    await picture(page, "thinking-light-wide");
    await accessible(page);
    await close();
  });

  it("keeps to the thinking budget that is chosen, and says how much of it is used", async () => {
    const { page, close } = await open(random.address);
    await page.locator("#budget").selectOption("custom");
    await page.locator("#budget-tokens").fill("40");
    await endless(page);
    const sent = page.waitForRequest("**/v1/chat/completions");
    await ask(page, "Go on");
    assert.equal((await sent).postDataJSON().thinking_budget, 40);
    await page.locator("#stop").click();
    await answered(page);
    await page.reload();
    assert.equal(await page.locator("#budget-tokens").inputValue(), "40");
    await close();
  });

  it("shows calls of tools that the server runs, with arguments and results", async () => {
    const { page, close } = await open(tools.address);
    await greedy(page);
    const sent = [];
    page.on("request", (request) => request.url().endsWith("/completions") && sent.push(request.postDataJSON()));
    await ask(page, "Watch a model. Batch: 22167.");
    await answered(page);
    const call = page.locator(".call").first();
    assert.equal(await call.locator(".name").textContent(), "watch_model");
    assert.match(await call.locator(".gist").textContent(), /batch 22167 is watched/);
    // It goes on after the result, and tells it.
    assert.match(await page.locator(".assistant .text").last().textContent(), /22167/);
    await call.locator("summary").click();
    assert.deepEqual(JSON.parse(await call.locator("pre").first().textContent()), { batch: "22167" });
    await picture(page, "tool-light-wide");
    await accessible(page);
    // What was called is part of the conversation from then on.
    await ask(page, SUM);
    await answered(page);
    const roles = sent[1].messages.map((message) => message.role);
    assert.deepEqual(roles.slice(0, 3), ["user", "assistant", "tool"]);
    await close();
  });

  it("can be stopped, and gives the server its place back", async () => {
    const { page, close } = await open(random.address);
    await endless(page);
    await ask(page, "Go on and on");
    await page.locator(".assistant .text, .assistant .thinking").first().waitFor();
    await page.keyboard.press("Escape");
    await page.locator(".remark", { hasText: "Stopped." }).waitFor();
    for (const end = Date.now() + 5000; ; await page.waitForTimeout(20)) {
      const { running } = await (await fetch(`${random.address}/health`)).json();
      if (running === 0) break;
      assert.ok(Date.now() < end, "the request goes on");
    }
    await close();
  });

  it("can be retried and edited", async () => {
    const { page, close } = await open(nano.address);
    await greedy(page);
    await ask(page, SUM);
    await answered(page);
    await page.locator(".assistant").hover();
    await page.getByRole("button", { name: "Retry" }).click();
    await answered(page);
    assert.equal(await page.locator(".assistant").count(), 1);
    assert.match(await page.locator(".assistant .text").textContent(), /42/);
    await page.locator(".user").hover();
    await page.getByRole("button", { name: "Edit" }).click();
    const field = page.getByRole("textbox", { name: "Edit the message" });
    assert.equal(await field.inputValue(), SUM);
    await field.fill("What is 30 + 31?");
    await picture(page, "edit-light-wide");
    await field.press("Enter");
    await answered(page);
    assert.equal(await page.locator(".turn").count(), 2);
    assert.match(await page.locator(".assistant .text").textContent(), /61/);
    await close();
  });

  it("is there again later, beside others, until it is deleted", async () => {
    const { page, close } = await open(nano.address);
    await greedy(page);
    await ask(page, SUM);
    await answered(page);
    await page.getByRole("button", { name: "New conversation" }).click();
    assert.equal(await page.locator(".turn").count(), 0);
    await page.reload();
    await page.locator("#conversations .open", { hasText: SUM }).click();
    await page.locator(".assistant .text", { hasText: "42" }).waitFor();
    const bin = page.locator("#conversations .remove");
    await bin.click();
    await bin.click();
    await page.reload();
    assert.equal(await page.locator("#conversations li").count(), 0);
    await close();
  });
});

describe("the keyboard", () => {
  it("is enough", async () => {
    const { page, close } = await open(nano.address);
    await greedy(page);
    const keys = page.keyboard;
    // The field has the focus from the beginning.
    await keys.type("What is");
    await keys.press("Shift+Enter");
    await keys.type("17 + 25?");
    assert.equal(await page.locator("#prompt").inputValue(), "What is\n17 + 25?");
    await keys.press("Enter");
    await answered(page);
    await keys.press("Alt+t");
    assert.equal(await page.locator(".thought").isVisible(), true);
    await keys.press("Alt+r");
    await answered(page);
    assert.equal(await page.locator(".assistant").count(), 1);
    await keys.press("ArrowUp");
    assert.equal(await page.evaluate(() => document.activeElement.className), "edit");
    await keys.press("Escape");
    await keys.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    await keys.press("Alt+Comma");
    assert.equal(await page.locator("#settings").isVisible(), true);
    await keys.press("Escape");
    await keys.press("Alt+n");
    assert.equal(await page.locator(".turn").count(), 0);
    // Everything that can be pressed is reached, and it is seen which has the focus.
    const reached = new Set();
    for (let step = 0; step < 25; step += 1) {
      await keys.press("Tab");
      const [name, outlined] = await page.evaluate(() => {
        const node = document.activeElement;
        // The field shows it by its border.
        return [node.id || node.className, node === document.body || node.id === "prompt" || getComputedStyle(node).outlineStyle !== "none"];
      });
      assert.ok(outlined, name);
      reached.add(name);
    }
    for (const name of ["skip", "new", "open", "remove", "open-settings", "budget"]) assert.ok(reached.has(name), `${name} of ${[...reached]}`);
    await close();
  });
});

describe("looks", () => {
  for (const [scheme, size, width, height] of [["light", "wide", 1280, 860], ["dark", "wide", 1280, 860], ["light", "narrow", 390, 844], ["dark", "narrow", 390, 844]]) {
    it(`well in ${scheme} and ${size}`, async () => {
      const { page, close } = await open(nano.address, { dark: scheme === "dark", width, height });
      if (size === "narrow") {
        await page.locator("#composer").waitFor();
        await fits(page);
        await picture(page, `empty-${scheme}-${size}`);
      }
      await remember(page, RICH, "Quadratics, tables and code");
      await page.locator(".assistant .text math").first().waitFor();
      await page.locator("#scroll").evaluate((node) => (node.scrollTop = 0));
      await fits(page);
      await picture(page, `rich-top-${scheme}-${size}`);
      await accessible(page);
      await page.locator("#scroll").evaluate((node) => (node.scrollTop = 700));
      await picture(page, `rich-middle-${scheme}-${size}`);
      await page.locator("#scroll").evaluate((node) => (node.scrollTop = node.scrollHeight));
      await picture(page, `rich-end-${scheme}-${size}`);
      if (size === "narrow") {
        await page.locator("#open-sidebar").click();
        await page.waitForTimeout(250);
        await picture(page, `sidebar-${scheme}-${size}`);
        await page.keyboard.press("Escape");
      }
      await page.keyboard.press("Alt+Comma");
      await picture(page, `settings-${scheme}-${size}`);
      await accessible(page);
      const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      assert.equal(/rgb\(2\d\d/.test(background), scheme === "light", background);
      await close();
    });
  }

  it("alive while the model thinks and tools run", async () => {
    const { page, close } = await open(nano.address);
    const shown = await page.evaluate(async (turns) => {
      const { AssistantView, UserView } = await import("/page/turns.js");
      document.getElementById("welcome").hidden = true;
      const view = new AssistantView(turns[1], {});
      document.getElementById("turns").append(new UserView(turns[0], {}).node, view.node);
      await view.update(2048);
      view.toggleThinking();
      return [...view.node.querySelectorAll(".thinking summary")].at(-1).textContent;
    }, RUNNING);
    assert.equal(shown, "Thinking812 of 2,048 tokens");
    await picture(page, "busy-light-wide");
    await accessible(page);
    await close();
  });

  it("as the reader wants, whatever the system does", async () => {
    const { page, close } = await open(nano.address);
    await page.keyboard.press("Alt+Comma");
    await page.getByLabel("Dark").check();
    const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(await background(), "rgb(24, 24, 23)");
    await page.reload();
    assert.equal(await background(), "rgb(24, 24, 23)");
    await close();
  });
});

describe("what a model writes", () => {
  it("does nothing", async () => {
    const { page, close } = await open(nano.address);
    await remember(page, HOSTILE);
    await page.locator(".assistant .text p").first().waitFor();
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.equal(await page.locator(".text :is(script, img, iframe, style, form, input)").count(), 0);
    for (const link of await page.locator(".text a").all()) assert.match((await link.getAttribute("href")) ?? "https:", /^(https?|mailto):/);
    await close();
  });

  it("is rendered while it comes", async () => {
    const { page, close } = await open(nano.address);
    const module = "/page/markdown.js";
    const seen = await page.evaluate(async ([module, text]) => {
      const { Markdown } = await import(module);
      const element = document.createElement("div");
      document.body.append(element);
      const markdown = new Markdown(element);
      let first;
      for (let end = 1; end <= text.length; end += 7) {
        markdown.show(text.slice(0, end), true);
        await new Promise((resume) => setTimeout(resume, 15));
        if (end > 400) first ??= element.firstChild;
      }
      await markdown.show(text, false);
      const grown = element.innerHTML;
      const whole = document.createElement("div");
      document.body.append(whole);
      await new Markdown(whole).show(text, false);
      return { grown, whole: whole.innerHTML, kept: first === element.firstChild && first.isConnected };
    }, [module, RICH[1].steps[0].content]);
    // What a window is too narrow for can be scrolled by keys, too.
    assert.equal(...[seen.grown, seen.whole].map((html) => html.replaceAll(` tabindex="0"`, "")));
    // What has been finished is not made anew.
    assert.equal(seen.kept, true);
    await close();
  });
});

describe("long messages", () => {
  it("are pasted and sent without a pause", async () => {
    const { page, close } = await open(random.address, { tolerates: ["400 (Bad Request)"] });
    const text = "Lorem ipsum dolor sit amet, consectetur. ".repeat(2500);
    const took = await page.evaluate(async (text) => {
      const field = document.getElementById("prompt");
      const start = performance.now();
      field.focus();
      document.execCommand("insertText", false, text);
      await new Promise((resume) => requestAnimationFrame(() => requestAnimationFrame(resume)));
      return performance.now() - start;
    }, text);
    console.log(`100 KB pasted in ${Math.round(took)} ms`);
    assert.ok(took < 1500, `${took} ms`);
    await picture(page, "long-light-wide");
    await page.locator("#prompt").press("Enter");
    // More than the context holds: the server says so, and so does the page.
    await page.locator(".problem", { hasText: "context" }).waitFor();
    await picture(page, "problem-light-wide");
    await accessible(page);
    await page.locator(".more").click();
    assert.equal((await page.locator(".said > div").textContent()).length, text.trim().length);
    await fits(page);
    await close();
  });
});

describe("an API key", () => {
  it("is asked for, kept in the browser and sent", async () => {
    const server = await serve({ args: ["--api-key", "let me in"] });
    try {
      const { page, close } = await open(server.address, { tolerates: ["401 (Unauthorized)"] });
      await page.locator("#key-error").waitFor();
      await picture(page, "key-light-wide");
      await page.getByLabel("API key").fill("let me in");
      await page.getByRole("button", { name: "Done" }).click();
      await page.locator("#model", { hasText: "nano" }).waitFor();
      await ask(page, SUM);
      await answered(page);
      await page.locator(".assistant .text p").waitFor();
      await page.reload();
      await page.locator("#model", { hasText: "nano" }).waitFor();
      await close();
    } finally {
      await server.stop();
    }
  });
});
