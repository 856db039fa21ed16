// What the user sets, kept in this browser.

const KEY = "arges.settings";
const DEFAULTS = { system: "", temperature: "", top_p: "", max_tokens: "", key: "", theme: "", budget: "", budget_tokens: "4096" };

export const settings = { ...DEFAULTS, ...read() };

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    return Object.fromEntries(Object.entries(kept).filter(([name, value]) => name in DEFAULTS && typeof value === "string"));
  } catch {
    return {};
  }
}

export function set(name, value) {
  settings[name] = value;
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // They last as long as the page, then.
  }
  if (name === "theme") showTheme();
}

export function showTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

// Tokens of thinking at most; null is as many as it takes.
export function budget() {
  const value = settings.budget === "custom" ? settings.budget_tokens : settings.budget;
  return value === "" ? null : Math.max(0, Math.trunc(Number(value)) || 0);
}

// The fields of a request that the settings give.
export function fields() {
  const fields = {};
  for (const name of ["temperature", "top_p", "max_tokens"]) {
    const number = Number.parseFloat(settings[name]);
    if (Number.isFinite(number)) fields[name] = number;
  }
  if (budget() !== null) fields.thinking_budget = budget();
  return fields;
}

// Connects the dialog. `onClose` is called when it has been closed.
export function connect(dialog, onClose) {
  const form = dialog.querySelector("form");
  form.addEventListener("input", ({ target }) => set(target.name, target.value));
  dialog.addEventListener("close", () => {
    dialog.querySelector("#key-error").hidden = true;
    onClose();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

// Shows the dialog; with `wrongKey`, at the key.
export function open(dialog, wrongKey = false) {
  const form = dialog.querySelector("form");
  for (const name of ["system", "temperature", "top_p", "max_tokens", "key", "theme"]) form.elements[name].value = settings[name];
  const error = dialog.querySelector("#key-error");
  error.hidden = !wrongKey;
  error.textContent = settings.key ? "The server wants an API key, and this is not it." : "The server wants an API key.";
  if (!dialog.open) dialog.showModal();
  if (wrongKey) form.elements.key.focus();
}
