// Shows a Markdown text that may still grow. The server renders it to sanitised HTML, block by block; finished blocks
// stay as they are, and only the text from the first other one on is sent again.

import { render } from "./api.js";
import { copyButton } from "./clipboard.js";

// Time between two renderings of a growing text, in milliseconds.
const PAUSE = 60;

// The only place where the page makes elements from text, and the only text is what the server sanitised.
const policy = window.trustedTypes?.createPolicy("arges", { createHTML: (html) => html }) ?? { createHTML: (html) => html };

function elements(html) {
  const template = document.createElement("template");
  template.innerHTML = policy.createHTML(html);
  for (const pre of template.content.querySelectorAll("pre")) {
    pre.append(copyButton(() => pre.querySelector("code")?.textContent ?? ""));
  }
  return template.content;
}

// What is wider than the column can be scrolled by keys too.
function letScroll(node) {
  for (const wide of node.querySelectorAll("pre > code, table, math[display=block]")) {
    if (wide.scrollWidth > wide.clientWidth) wide.setAttribute("tabindex", "0");
  }
}

export class Markdown {
  #element;
  #text = "";
  #partial = true;
  #shown = []; // { html, node }
  #finished = 0; // How many of them will not change,
  #from = 0; //     and where the text after those begins.
  #running = null;
  #stale = false;

  constructor(element) {
    this.#element = element;
  }

  // Shows `text`; `partial` if more will follow. Resolves when it is shown.
  show(text, partial) {
    if (text === this.#text && partial === this.#partial) return this.#running ?? Promise.resolve();
    this.#text = text;
    this.#partial = partial;
    this.#stale = true;
    this.#running ??= this.#run();
    return this.#running;
  }

  async #run() {
    while (this.#stale) {
      this.#stale = false;
      try {
        await this.#renderOnce(this.#text, this.#partial);
      } catch {
        this.#showPlain(this.#text);
      }
      if (this.#stale && this.#partial) await new Promise((resume) => setTimeout(resume, PAUSE));
    }
    this.#running = null;
  }

  async #renderOnce(text, partial) {
    // At the end all is rendered once more: a link's address may stand anywhere.
    const [kept, from] = partial ? [this.#finished, this.#from] : [0, 0];
    const { blocks, finished } = await render(text.slice(from), partial);
    this.#finished = kept + finished;
    this.#from = from + (blocks[finished]?.start ?? 0);
    this.#element.classList.remove("plain");
    if (!this.#shown.length) this.#element.replaceChildren();
    for (const [index, { html }] of blocks.entries()) {
      const place = kept + index;
      const old = this.#shown[place];
      if (old?.html === html) continue;
      const node = document.createElement("div");
      node.append(elements(html));
      if (old) old.node.replaceWith(node);
      else this.#element.append(node);
      letScroll(node);
      this.#shown[place] = { html, node };
    }
    for (const { node } of this.#shown.splice(kept + blocks.length)) node.remove();
  }

  #showPlain(text) {
    this.#shown = [];
    this.#finished = this.#from = 0;
    this.#element.classList.add("plain");
    this.#element.textContent = text;
  }
}
