// An MCP server with one tool, of the kind that the model in the program was trained to call.

import { createInterface } from "node:readline";

const TOOL = {
  name: "watch_model",
  description: "Watch a model",
  inputSchema: { type: "object", properties: { batch: { type: "string", description: "batch" } }, required: ["batch"] },
  annotations: { readOnlyHint: true },
};

const METHODS = {
  initialize: ({ protocolVersion }) => ({ protocolVersion, capabilities: { tools: {} }, serverInfo: { name: "models", version: "1" } }),
  ping: () => ({}),
  "tools/list": () => ({ tools: [TOOL] }),
  "tools/call": ({ arguments: given }) => ({ content: [{ type: "text", text: `batch ${given.batch} is watched` }] }),
};

createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, method, params } = JSON.parse(line);
  if (id === undefined) return;
  const answer = METHODS[method] ? { result: METHODS[method](params) } : { error: { code: -32601, message: `no method ${method}` } };
  console.log(JSON.stringify({ jsonrpc: "2.0", id, ...answer }));
});
