// The official TypeScript SDK over both transports: typescript.mjs ARGES HTTP_URL TOKEN, with the server's environment.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [arges, url, token] = process.argv.slice(2);

function check(holds, message) {
  if (!holds) {
    console.error(`FAILED ${message}`);
    process.exit(1);
  }
}

async function use(transport, name) {
  const client = new Client({ name: "test", version: "1" });
  await client.connect(transport);
  const { tools } = await client.listTools();
  check(tools.length === 10, `${name}: ${tools.length} tools`);
  const made = await client.callTool({ name: "text_to_audio", arguments: { text: "hello" } });
  const kinds = made.content.map((block) => block.type).join();
  check(!made.isError && kinds === "text,audio", `${name}: ${kinds}`);
  const refused = await client.callTool({ name: "text_to_audio", arguments: { text: "hello", pitch: 99 } });
  check(refused.isError && refused.content[0].text.includes("`pitch` must be"), `${name}: ${JSON.stringify(refused)}`);
  await client.close();
  console.log(`${name}: 10 tools, audio content, errors as errors`);
}

await use(new StdioClientTransport({ command: arges, args: ["mcp", "serve"], env: process.env }), "TypeScript SDK, stdio");
const requestInit = { headers: { Authorization: `Bearer ${token}` } };
await use(new StreamableHTTPClientTransport(new URL(url), { requestInit }), "TypeScript SDK, HTTP");
