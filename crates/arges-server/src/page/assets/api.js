// The server's API, as much of it as the page needs.

import { settings } from "./settings.js";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const headers = {};
  if (settings.key) headers.authorization = `Bearer ${settings.key}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new ApiError(answer?.error?.message ?? `The server answered ${response.status}.`, response.status);
}

// The name of the model that is served.
export async function model() {
  const models = await (await request("v1/models")).json();
  return models.data[0]?.id ?? "";
}

// A Markdown text as blocks of HTML, some of them finished; see docs/serving.md.
export async function render(text, partial) {
  return (await request("render", { text, partial })).json();
}

// The chunks of an answer as they come.
export async function* chat(fields, signal) {
  const body = { stream: true, stream_options: { include_usage: true }, return_token_ids: true, show_tool_calls: true, ...fields };
  const response = await request("v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let done = false;
  try {
    while (!done) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new ApiError("The connection broke off.", 0);
      }
      if (piece.done) throw new ApiError("The connection broke off.", 0);
      const lines = (held + piece.value).split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") {
          done = true;
          break;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, 0);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
