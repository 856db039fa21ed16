"""`arges mcp serve --http` on a free port, and what the tests of clients share. Needs no package."""

import os
import signal
import subprocess


def environment(url, base, mode):
    base.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(base),
        "MINIMAX_API_KEY": "the-key",
        "MINIMAX_API_HOST": url,
        "MINIMAX_MCP_BASE_PATH": str(base),
        "MINIMAX_API_RESOURCE_MODE": mode,
    }


def check(holds, message):
    if not holds:
        raise SystemExit(f"FAILED {message}")


class HttpServer:
    """A context manager; without a token anyone on this machine may use the server."""

    def __init__(self, arges, env, log, token="a-token"):
        self.token = token
        command = [arges, "mcp", "serve", "--http", "127.0.0.1:0"] + (["--token", token] if token else [])
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=open(log, "w"), text=True)
        self.url = self.process.stdout.readline().strip().removeprefix("listening on ")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        check(self.process.wait(20) == 0, "the server did not end in order")
