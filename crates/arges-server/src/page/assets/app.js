// The chat page: one conversation at a time, and one answer.

import * as api from "./api.js";
import { fill, grows, sends } from "./composer.js";
import { budget, connect, fields, open as openSettings, set, settings, showTheme } from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as store from "./store.js";
import { AssistantView, UserView, answerText, messages } from "./turns.js";

const at = (id) => document.getElementById(id);
const prompt = at("prompt");
const scroll = at("scroll");
const TITLE = 60;

let model = "";
let conversations = [];
let current = fresh();
let views = new Map();
let answering = null; // { controller, turn }
let follows = true;

function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()), title: "New conversation", updated: Date.now(), turns: [] };
}

// ---- What is on the page

function view(turn) {
  const made = turn.role === "user" ? new UserView(turn, { edit }) : new AssistantView(turn, { retry, model });
  views.set(turn, made);
  at("turns").append(made.node);
  return made;
}

function showConversation() {
  views = new Map();
  at("turns").replaceChildren();
  current.turns.forEach(view);
  follows = true;
  refresh();
  toEnd();
}

function refresh() {
  at("welcome").hidden = current.turns.length > 0;
  at("title").textContent = current.title;
  document.title = current.turns.length ? `${current.title} · Arges` : "Arges";
  const mine = answering?.conversation === current;
  at("send").hidden = mine;
  at("stop").hidden = !mine;
  at("send").disabled = !prompt.value.trim();
  sidebar.show(conversations, current.id, { choose, remove });
}

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

function say(text) {
  at("status").textContent = text;
}

scroll.addEventListener("scroll", () => {
  follows = scroll.scrollTop + scroll.clientHeight >= scroll.scrollHeight - 48;
  at("latest").hidden = follows;
}, { passive: true });
// The text grows when it has been rendered, and not when it came.
new ResizeObserver(() => {
  if (follows) toEnd();
  at("latest").hidden = follows || scroll.scrollHeight <= scroll.clientHeight;
}).observe(at("turns"));
at("latest").addEventListener("click", () => {
  follows = true;
  toEnd();
  prompt.focus();
});

// ---- Conversations

async function keep(conversation) {
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  conversation.updated = Date.now();
  conversations.sort((a, b) => b.updated - a.updated);
  try {
    await store.put(conversation);
  } catch {
    say("The conversation could not be kept in this browser.");
  }
}

function choose(conversation) {
  current = conversation;
  sidebar.setOpen(false);
  showConversation();
  prompt.focus();
}

function begin() {
  if (current.turns.length || answering?.conversation === current) current = fresh();
  sidebar.setOpen(false);
  showConversation();
  prompt.focus();
}

async function remove(conversation) {
  if (answering?.conversation === conversation) stop();
  conversations = conversations.filter((other) => other !== conversation);
  await store.remove(conversation.id);
  if (conversation === current) current = fresh();
  showConversation();
  say("Deleted.");
}

// ---- Questions and answers

function send() {
  const text = prompt.value.trim();
  if (!text || answering?.conversation === current) return;
  fill(prompt, "");
  ask(text);
}

function ask(text) {
  if (!current.turns.length) current.title = text.split("\n")[0].slice(0, TITLE);
  const turn = { role: "user", text };
  current.turns.push(turn);
  view(turn);
  answer();
}

function edit(turn, text) {
  stop();
  forgetFrom(turn);
  ask(text);
  prompt.focus();
}

function retry(turn) {
  stop();
  forgetFrom(turn);
  answer();
  prompt.focus();
}

function forgetFrom(turn) {
  for (const gone of current.turns.splice(current.turns.indexOf(turn))) {
    views.get(gone)?.node.remove();
    views.delete(gone);
  }
}

function stop() {
  answering?.controller.abort();
}

async function answer() {
  stop();
  const conversation = current;
  const turn = { role: "assistant", steps: [], state: "running", problem: "", finish: null, figures: "" };
  const request = { ...fields(), messages: [...system(), ...messages(conversation.turns)] };
  conversation.turns.push(turn);
  view(turn);
  const mine = { controller: new AbortController(), conversation, turn };
  answering = mine;
  follows = true;
  refresh();
  say("Sent.");
  const limit = budget();
  const update = frames(() => views.get(turn)?.update(limit));
  const taking = new Taking(turn);
  try {
    for await (const chunk of api.chat(request, mine.controller.signal)) {
      taking.take(chunk);
      const now = taking.phase();
      if (now) say(now);
      update();
    }
    turn.state = "done";
  } catch (error) {
    if (mine.controller.signal.aborted) {
      turn.state = "stopped";
    } else {
      turn.state = "failed";
      turn.problem = error.message;
      if (error.status === 401) openSettings(at("settings"), true);
    }
  }
  taking.finish();
  if (answering === mine) answering = null;
  await views.get(turn)?.update(limit);
  // A turn that was given up meanwhile is not told of.
  if (conversation.turns.includes(turn)) {
    await keep(conversation);
    if (turn.state === "done") say(`Answer: ${answerText(turn).slice(0, 600) || "none"}`);
    if (turn.state === "stopped") say("Stopped.");
  }
  refresh();
}

function system() {
  return settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
}

// Calls `act` once a frame at most.
function frames(act) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      act();
    });
  };
}

// Takes the chunks of an answer into its turn.
class Taking {
  constructor(turn) {
    this.turn = turn;
    this.started = performance.now();
    this.first = null;
    this.tokens = 0;
    this.said = "";
  }

  step() {
    return this.turn.steps.at(-1) ?? this.begin();
  }

  begin() {
    const step = { thinking: "", thinkingTokens: 0, thinkingSeconds: 0, content: "", calls: [] };
    this.turn.steps.push(step);
    this.stepStarted = performance.now();
    return step;
  }

  take({ choices, usage }) {
    if (usage) this.usage = usage;
    const choice = choices[0];
    if (!choice) return;
    const { delta } = choice;
    const count = choice.token_ids?.length ?? 0;
    this.tokens += count;
    if (count) this.first ??= performance.now();
    if (choice.finish_reason) this.turn.finish = choice.finish_reason;
    if (delta.role === "tool") return this.takeResult(delta);
    // A new turn of the model's, after its tools.
    if (delta.role === "assistant") this.begin();
    const step = this.step();
    if (delta.reasoning_content) {
      step.thinking += delta.reasoning_content;
      step.thinkingSeconds = (performance.now() - this.stepStarted) / 1000;
    }
    if (delta.content) step.content += delta.content;
    for (const { index, id, function: made } of delta.tool_calls ?? []) {
      step.calls[index] ??= { id, name: "", arguments: "", result: null, failed: false };
      step.calls[index].name += made.name ?? "";
      step.calls[index].arguments += made.arguments ?? "";
    }
    if (!step.content && !step.calls.length) step.thinkingTokens += count;
  }

  takeResult({ tool_call_id: id, content, is_error: failed }) {
    const call = this.turn.steps.flatMap((step) => step.calls).findLast((call) => call.id === id);
    if (call) Object.assign(call, { result: content, failed: Boolean(failed) });
  }

  // What the answer has come to, if that is new.
  phase() {
    const step = this.step();
    const now = step.calls.length ? `Uses ${step.calls.at(-1).name}.` : step.content.trim() ? "Answers." : step.thinking ? "Thinks." : "";
    if (now === this.said) return "";
    this.said = now;
    return now;
  }

  finish() {
    const { turn } = this;
    const thought = turn.steps.filter((step) => step.thinking);
    const exact = this.usage?.completion_tokens_details?.reasoning_tokens;
    if (exact && thought.length === 1) thought[0].thinkingTokens = exact;
    const total = this.usage?.completion_tokens ?? this.tokens;
    if (!total) return;
    const seconds = (performance.now() - (this.first ?? this.started)) / 1000;
    const rate = total > 1 && seconds > 0 ? ` · ${Math.round(total / seconds)}/s` : "";
    turn.figures = `${total.toLocaleString("en")} tokens${rate}`;
  }
}

// ---- The composer, and keys

function showBudget() {
  at("budget").value = settings.budget;
  at("budget-tokens").value = settings.budget_tokens;
  at("budget-tokens-label").hidden = settings.budget !== "custom";
}

at("budget").addEventListener("change", ({ target }) => {
  set("budget", target.value);
  showBudget();
  if (target.value === "custom") at("budget-tokens").focus();
});
at("budget-tokens").addEventListener("input", ({ target }) => set("budget_tokens", target.value));
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("stop").addEventListener("click", () => {
  stop();
  prompt.focus();
});
at("new").addEventListener("click", begin);
at("open-settings").addEventListener("click", () => openSettings(at("settings")));
prompt.addEventListener("input", () => (at("send").disabled = !prompt.value.trim()));
grows(prompt);
sends(prompt, send);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowUp" || prompt.value) return;
  const last = current.turns.findLast((turn) => turn.role === "user");
  if (!last) return;
  event.preventDefault();
  views.get(last).startEditing();
});

const KEYS = {
  KeyN: begin,
  KeyR: () => {
    const last = current.turns.findLast((turn) => turn.role === "assistant");
    if (last) retry(last);
  },
  KeyT: () => views.get(current.turns.findLast((turn) => turn.role === "assistant"))?.toggleThinking(),
  Comma: () => openSettings(at("settings")),
};

document.addEventListener("keydown", (event) => {
  if (at("settings").open) return;
  if (event.altKey && !event.ctrlKey && !event.metaKey && KEYS[event.code]) {
    event.preventDefault();
    KEYS[event.code]();
  } else if (event.key === "Escape") {
    if (sidebar.isOpen()) sidebar.setOpen(false);
    else if (answering) stop();
  } else if (event.key === "/" && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    prompt.focus();
  }
});

// ---- Beginning

async function showModel() {
  try {
    model = await api.model();
    at("model").textContent = model;
    at("welcome-model").textContent = model || "the model";
  } catch (error) {
    if (error.status === 401) openSettings(at("settings"), true);
    else say(error.message);
  }
}

showTheme();
showBudget();
let key = settings.key;
connect(at("settings"), () => {
  if (settings.key !== key || !model) showModel();
  key = settings.key;
  prompt.focus();
});
refresh();
showModel();
store.all().then((kept) => {
  conversations = kept;
  refresh();
});
prompt.focus();
