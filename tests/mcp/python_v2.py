"""The official Python SDK, version 2, over both transports, in the newest and an older form of the protocol:
python_v2.py ARGES WORK"""

import asyncio
import pathlib
import sys

import httpx2
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from server import HttpServer, check, environment
from standin import StandIn


async def use(client, name):
    tools = (await client.list_tools()).tools
    check(len(tools) == 10, f"{name}: {len(tools)} tools")
    result = await client.call_tool("text_to_image", {"prompt": "a cat"})
    kinds = [block.type for block in result.content]
    check(kinds == ["text", "image", "image"] and not result.is_error, f"{name}: {kinds}")
    result = await client.call_tool("text_to_image", {"prompt": "a cat", "n": 10})
    check(result.is_error and "`n` must be" in result.content[0].text, f"{name}: {result}")
    print(f"{name}: protocol {client.protocol_version}, 10 tools, image content, errors as errors")


async def main(arges, work):
    env = environment(StandIn().url, work / "v2", "local")
    parameters = StdioServerParameters(command=str(arges), args=["mcp", "serve"], env=env, cwd=env["HOME"])
    for mode in ("auto", "legacy"):
        async with Client(stdio_client(parameters), mode=mode) as client:
            await use(client, f"Python SDK 2, stdio, {mode}")
    with HttpServer(arges, env, work / "v2-http.log") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        for mode in ("auto", "legacy"):
            async with httpx2.AsyncClient(headers=headers) as http:
                async with Client(streamable_http_client(server.url, http_client=http), mode=mode) as client:
                    await use(client, f"Python SDK 2, HTTP, {mode}")


if __name__ == "__main__":
    asyncio.run(main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()))
