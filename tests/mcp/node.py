"""The TypeScript SDK and the inspector's command line against a server: node.py ARGES WORK NODE_MODULES"""

import json
import pathlib
import subprocess
import sys

from server import HttpServer, check, environment
from standin import StandIn


def run(command, env, cwd):
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)
    check(done.returncode == 0, f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def main(arges, work, modules):
    env = environment(StandIn().url, work / "node", "local")
    with HttpServer(arges, env, work / "node-http.log") as server:
        script = modules.parent / "typescript.mjs"
        print(run(["node", script, arges, server.url, server.token], env, modules.parent), end="")
    # The inspector's command line has no way to send a token.
    with HttpServer(arges, env, work / "inspector-http.log", token=None) as server:
        inspector = [modules / ".bin" / "mcp-inspector", "--cli"]
        call = ["--method", "tools/call", "--tool-name", "text_to_image", "--tool-arg", "prompt=a cat", "--tool-arg", "n=2"]
        for name, target in [("stdio", [arges, "mcp", "serve"]), ("HTTP", [server.url])]:
            tools = json.loads(run(inspector + target + ["--method", "tools/list"], env, modules.parent))["tools"]
            result = json.loads(run(inspector + target + call, env, modules.parent))
            kinds = [block["type"] for block in result["content"]]
            check(len(tools) == 10 and kinds == ["text", "image", "image"], f"inspector, {name}: {len(tools)}, {kinds}")
            print(f"inspector, {name}: 10 tools, image content")


if __name__ == "__main__":
    main(*(pathlib.Path(argument).resolve() for argument in sys.argv[1:4]))
