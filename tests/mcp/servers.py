"""Starts the servers that are compared, and talks to them with the official client SDK."""

import contextlib
import re

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

ORIGINAL = ["-m", "minimax_mcp.server"]


@contextlib.asynccontextmanager
async def connected(command, args, env, log):
    parameters = StdioServerParameters(command=str(command), args=args, env=env, cwd=env["HOME"])
    with open(log, "a") as errors:
        async with stdio_client(parameters, errlog=errors) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            yield session


def plain(text, base, url):
    """A result without what differs from run to run."""
    text = text.replace(str(base), "BASE").replace(url, "URL")
    return re.sub(r"\d{8}_\d{6}", "TIME", text)


def text_of(result):
    return result.content[0].text if result.content else ""
