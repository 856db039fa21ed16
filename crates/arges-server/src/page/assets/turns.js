// Messages and how they look.
//
// A conversation is a list of turns. A user's is { role: "user", text }. An assistant's is { role: "assistant", steps,
// state, problem, finish, figures }: a step is what the model wrote between two uses of tools,
// { thinking, thinkingTokens, thinkingSeconds, content, calls }, a call { id, name, arguments, result, failed }.

import { copyButton } from "./clipboard.js";
import { Markdown } from "./markdown.js";
import { fill, grows, sends } from "./composer.js";

// Characters of a message that are shown before the reader asks for all of it.
const LONG = 4000;

const count = new Intl.NumberFormat("en");
const tokens = (number) => (number === 1 ? "1 token" : `${count.format(number)} tokens`);

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function button(text, act) {
  const node = element("button", "", text);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

// The messages of a request for these turns.
export function messages(turns) {
  return turns.flatMap((turn) => {
    if (turn.role === "user") return [{ role: "user", content: turn.text }];
    return turn.steps.flatMap((step) => {
      const calls = step.calls.filter((call) => call.result !== null);
      if (!calls.length && !step.content && !step.thinking) return [];
      const message = { role: "assistant", content: step.content };
      if (step.thinking) message.reasoning_content = step.thinking;
      if (!calls.length) return [message];
      const made = ({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } });
      message.tool_calls = calls.map(made);
      return [message, ...calls.map((call) => ({ role: "tool", tool_call_id: call.id, name: call.name, content: call.result }))];
    });
  });
}

export const answerText = (turn) => turn.steps.map((step) => step.content).filter(Boolean).join("\n\n");

export class UserView {
  constructor(turn, { edit }) {
    this.turn = turn;
    this.edit = edit;
    this.node = element("li", "turn user", element("h2", "unseen", "You"));
    this.show();
  }

  show() {
    const { text } = this.turn;
    const body = element("div");
    const said = element("div", "said", body);
    if (text.length > LONG) {
      body.textContent = `${text.slice(0, LONG / 4)}…`;
      const more = button(`Show all ${count.format(text.length)} characters`, () => {
        body.textContent = text;
        more.remove();
      });
      more.className = "more";
      said.append(more);
    } else {
      body.textContent = text;
    }
    this.node.replaceChildren(this.node.firstChild, said, element("div", "actions", copyButton(() => text), button("Edit", () => this.startEditing())));
  }

  startEditing() {
    const field = element("textarea", "edit");
    field.setAttribute("aria-label", "Edit the message");
    field.rows = 1;
    grows(field);
    const finish = () => {
      const text = field.value.trim();
      if (text) this.edit(this.turn, text);
    };
    const cancel = () => {
      this.show();
      this.node.querySelector(".actions button:last-child").focus();
    };
    sends(field, finish);
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      cancel();
    });
    const quiet = button("Cancel", cancel);
    quiet.className = "quiet";
    const send = button("Send", finish);
    send.className = "primary text";
    this.node.replaceChildren(this.node.firstChild, element("div", "editing", field, element("div", "buttons", quiet, send)));
    fill(field, this.turn.text);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

class ThinkingView {
  constructor() {
    this.label = element("span", "label");
    this.count = element("span", "count");
    this.meter = element("meter", "meter");
    this.meter.setAttribute("aria-label", "Thinking budget used");
    this.thought = element("div", "thought");
    this.thought.tabIndex = 0;
    this.node = element("details", "thinking", element("summary", "", this.label, this.count, this.meter), this.thought);
    this.shown = 0;
  }

  update(step, isBusy, budget) {
    this.node.classList.toggle("busy", isBusy);
    const seconds = Math.round(step.thinkingSeconds);
    this.label.textContent = isBusy ? "Thinking" : seconds >= 1 ? `Thought for ${seconds} s` : "Thought";
    const has = isBusy && budget;
    this.count.textContent = has ? `${count.format(step.thinkingTokens)} of ${tokens(budget)}` : tokens(step.thinkingTokens);
    this.meter.hidden = !has;
    if (has) {
      this.meter.max = budget;
      this.meter.value = step.thinkingTokens;
    }
    if (step.thinking.length > this.shown) {
      const atEnd = this.thought.scrollTop + this.thought.clientHeight >= this.thought.scrollHeight - 20;
      this.thought.append(step.thinking.slice(this.shown));
      this.shown = step.thinking.length;
      if (atEnd && isBusy) this.thought.scrollTop = this.thought.scrollHeight;
    }
  }
}

class CallView {
  constructor() {
    this.name = element("span", "name");
    this.gist = element("span", "gist");
    this.arguments = element("pre");
    this.result = element("pre");
    this.resultPart = element("div", "", element("dt", "", "Result"), element("dd", "", this.result));
    const given = element("div", "", element("dt", "", "Arguments"), element("dd", "", this.arguments));
    for (const pre of [this.arguments, this.result]) pre.tabIndex = 0;
    this.node = element("details", "call", element("summary", "", element("span", "label", "Tool"), this.name, this.gist), element("dl", "", given, this.resultPart));
  }

  update(call, isBusy) {
    const waits = call.result === null;
    this.node.classList.toggle("busy", isBusy && waits);
    this.node.classList.toggle("failed", Boolean(call.failed));
    this.name.textContent = call.name;
    const gist = waits ? (isBusy ? "…" : "was not run") : `→ ${call.result.trim().split("\n")[0].slice(0, 200)}`;
    this.gist.textContent = gist;
    this.arguments.textContent = pretty(call.arguments);
    this.resultPart.hidden = waits;
    if (!waits) this.result.textContent = pretty(call.result);
  }
}

function pretty(json) {
  try {
    const value = JSON.parse(json);
    return typeof value === "object" ? JSON.stringify(value, null, 2) : json;
  } catch {
    return json;
  }
}

class StepView {
  constructor(node) {
    this.node = node;
    this.calls = [];
  }

  update(step, isBusy, budget) {
    if (step.thinking && !this.thinking) {
      this.thinking = new ThinkingView();
      this.node.append(this.thinking.node);
    }
    this.thinking?.update(step, isBusy && !step.content && !step.calls.length, budget);
    // White space alone, before a call, is no text.
    if (step.content.trim() && !this.markdown) {
      const text = element("div", "text");
      this.markdown = new Markdown(text);
      this.node.append(text);
    }
    const done = this.markdown?.show(step.content, isBusy);
    step.calls.forEach((call, index) => {
      if (!this.calls[index]) {
        this.calls[index] = new CallView();
        this.node.append(this.calls[index].node);
      }
      this.calls[index].update(call, isBusy);
    });
    return done;
  }
}

const REMARKS = {
  length: "The answer was cut off: it reached the most tokens allowed.",
  repetition: "The answer was ended: it went round in circles.",
};

export class AssistantView {
  constructor(turn, { retry, model }) {
    this.turn = turn;
    this.steps = [];
    this.body = element("div", "body");
    this.waiting = element("p", "waiting", "Reading …");
    this.end = element("div", "end");
    this.figures = element("span", "figures");
    this.copy = copyButton(() => answerText(turn));
    this.actions = element("div", "actions", this.copy, button("Retry", () => retry(turn)), this.figures);
    this.node = element("li", "turn assistant", element("h2", "unseen", model || "Answer"), this.body, this.waiting, this.end, this.actions);
    this.update(null);
  }

  // Shows what the turn has become. Resolves when all of it is there.
  async update(budget) {
    const { turn } = this;
    const isBusy = turn.state === "running";
    this.node.setAttribute("aria-busy", String(isBusy));
    const rendered = turn.steps.map((step, index) => {
      if (!this.steps[index]) {
        const node = element("div", "step");
        this.body.append(node);
        this.steps[index] = new StepView(node);
      }
      return this.steps[index].update(step, isBusy && index === turn.steps.length - 1, budget);
    });
    const last = turn.steps.at(-1);
    this.waiting.hidden = !isBusy || Boolean(last && (last.thinking || last.content.trim() || last.calls.length));
    this.actions.hidden = isBusy;
    this.copy.hidden = !answerText(turn).trim();
    this.figures.textContent = turn.figures ?? "";
    this.end.replaceChildren(...this.#endings());
    await Promise.all(rendered);
  }

  #endings() {
    const { turn } = this;
    const endings = [];
    if (turn.state === "stopped") endings.push(element("p", "remark", "Stopped."));
    if (turn.state === "done" && REMARKS[turn.finish]) endings.push(element("p", "remark", REMARKS[turn.finish]));
    if (turn.state === "failed") {
      const problem = element("div", "problem", element("span", "", turn.problem));
      problem.setAttribute("role", "alert");
      endings.push(problem);
    }
    return endings;
  }

  toggleThinking() {
    const all = this.node.querySelectorAll("details.thinking");
    const last = all[all.length - 1];
    if (last) last.open = !last.open;
  }
}
