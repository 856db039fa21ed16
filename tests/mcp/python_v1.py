"""The official Python SDK, version 1, over both transports: python_v1.py ARGES WORK"""

import asyncio
import pathlib
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from server import HttpServer, check, environment
from servers import connected
from standin import StandIn, ok


async def use(session, name):
    tools = (await session.list_tools()).tools
    check(len(tools) == 10, f"{name}: {len(tools)} tools")
    result = await session.call_tool("text_to_audio", {"text": "hello"})
    kinds = [block.type for block in result.content]
    check(kinds == ["text", "audio"] and not result.isError, f"{name}: {kinds}")
    reports = []

    async def report(done, total, message):
        reports.append(message)

    result = await session.call_tool("music_generation", {"prompt": "p", "lyrics": "l"}, progress_callback=report)
    check(not result.isError and reports, f"{name}: {reports}")
    result = await session.call_tool("text_to_audio", {"text": "hello", "speed": 9})
    check(result.isError and "`speed` must be" in result.content[0].text, f"{name}: {result}")
    print(f"{name}: 10 tools, audio content, {len(reports)} reports of progress, errors as errors")


async def main(arges, work):
    stand_in = StandIn()
    stand_in.reset({"/v1/music_generation": slow})
    env = environment(stand_in.url, work / "v1", "local")
    async with connected(arges, ["mcp", "serve"], env, work / "v1.log") as session:
        await use(session, "Python SDK 1, stdio")
    with HttpServer(arges, env, work / "v1-http.log") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        async with streamablehttp_client(server.url, headers=headers) as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                await use(session, "Python SDK 1, HTTP")


def slow():
    import time

    time.sleep(6)
    return ok(data={"audio": "00ff"})


if __name__ == "__main__":
    asyncio.run(main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()))
