// OpenAI's and Anthropic's SDKs for JavaScript, unmodified. ARGES_ROOT is where the server is.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const root = process.env.ARGES_ROOT;
const openai = new OpenAI({ baseURL: `${root}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: root, apiKey: "none", maxRetries: 0 });

const model = "arges-nano";
const messages = [{ role: "user", content: "What is 17 + 25?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

test("a streamed chat says what a whole one says", async () => {
  const request = { model, messages, temperature: 0 };
  const whole = await openai.chat.completions.create(request);
  const stream = await openai.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } });
  let content = "";
  let reasoning = "";
  let usage;
  for await (const chunk of stream) {
    content += chunk.choices[0]?.delta.content ?? "";
    reasoning += chunk.choices[0]?.delta.reasoning_content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(content, whole.choices[0].message.content);
  assert.equal(reasoning, whole.choices[0].message.reasoning_content);
  assert.deepEqual(usage, whole.usage);
  assert.match(content, /42/);
});

test("the stream helper puts calls together", async () => {
  const tool = { type: "function", function: { name: "get_weather", parameters, strict: true } };
  const stream = openai.chat.completions.stream({
    model, messages, temperature: 0, tools: [tool], tool_choice: "required", parallel_tool_calls: false,
  });
  const { choices } = await stream.finalChatCompletion();
  assert.equal(choices[0].finish_reason, "tool_calls");
  const call = choices[0].message.tool_calls[0].function;
  assert.equal(call.name, "get_weather");
  assert.ok(["Paris", "Rome"].includes(JSON.parse(call.arguments).city));
});

test("responses are streamed item by item", async () => {
  const tool = { type: "function", name: "get_weather", parameters, strict: true };
  const request = { model, input: messages, temperature: 0, tools: [tool], tool_choice: "auto" };
  const stream = openai.responses.stream(request);
  const types = new Set();
  for await (const event of stream) types.add(event.type);
  const final = await stream.finalResponse();
  const whole = await openai.responses.create(request);
  assert.equal(final.output_text, whole.output_text);
  assert.deepEqual(final.output.map((item) => item.type), whole.output.map((item) => item.type));
  assert.ok(types.has("response.completed") && types.has("response.output_item.done"));
});

test("messages are streamed with thinking, text and calls", async () => {
  const tool = { name: "get_weather", input_schema: parameters };
  const request = { model, messages, max_tokens: 600, thinking: { type: "enabled", budget_tokens: 300 } };
  const text = await anthropic.messages.stream(request).finalMessage();
  assert.deepEqual(text.content.map((block) => block.type), ["thinking", "text"]);
  const called = await anthropic.messages.stream({ ...request, tools: [tool], tool_choice: { type: "any" } }).finalMessage();
  const call = called.content.at(-1);
  assert.equal(called.stop_reason, "tool_use");
  assert.ok(["Paris", "Rome"].includes(call.input.city));
  const count = await anthropic.messages.countTokens({ model, messages });
  assert.equal(count.input_tokens, text.usage.input_tokens);
});

test("errors are those the SDKs know", async () => {
  await assert.rejects(openai.chat.completions.create({ model: "gpt", messages }), OpenAI.NotFoundError);
  await assert.rejects(openai.chat.completions.create({ model, messages, temperature: 9 }), (error) => error.param === "temperature");
  await assert.rejects(anthropic.messages.create({ model: "claude", messages, max_tokens: 1 }), Anthropic.NotFoundError);
});
