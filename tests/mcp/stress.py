"""200 calls at once, and an API that misbehaves: time, memory, handles and children of the real program.
stress.py ARGES WORK

Talks JSON-RPC over standard streams itself, as an SDK would be part of what is measured.
"""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

from server import check, environment
from standin import StandIn, failure, ok

CALLS = 200
SOUND = bytes(256 << 10)


class Server:
    def __init__(self, arges, env, log):
        self.process = subprocess.Popen(
            [arges, "mcp", "serve"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "w"), text=True
        )
        self.answers = {}
        self.arrived = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "stress", "version": "1"}}
        self.number = 0
        self.wait([self.send("initialize", params)])
        self.write({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self.arrived:
                self.answers[message.get("id")] = message
                self.arrived.notify_all()

    def write(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def send(self, method, params):
        self.number += 1
        self.write({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        return self.number

    def wait(self, numbers, seconds=300):
        with self.arrived:
            check(self.arrived.wait_for(lambda: all(n in self.answers for n in numbers), seconds), "no answer")
            return [self.answers.pop(number) for number in numbers]

    def call(self, tool, arguments, times=1):
        """Results of equal calls at once, and how long they took."""
        started = time.monotonic()
        numbers = [self.send("tools/call", {"name": tool, "arguments": arguments}) for _ in range(times)]
        results = [answer["result"] for answer in self.wait(numbers)]
        return results, time.monotonic() - started

    def status(self, field):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith(field):
                return int(line.split()[1])

    def peak(self):
        """Highest resident memory in MiB since the last call of this."""
        value = self.status("VmHWM") // 1024
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as file:
            file.write("5")
        return value

    def handles(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def children(self):
        found = subprocess.run(["ps", "--ppid", str(self.process.pid), "-o", "pid="], capture_output=True, text=True)
        return len(found.stdout.split())


def tell(name, seconds, server, what):
    print(f"{name}: {seconds:.1f} s, peak {server.peak()} MiB, {what}")


def errors(results):
    check(all(result.get("isError") for result in results), f"no error: {results[0]}")
    return results[0]["content"][0]["text"][:150]


def main(arges, work):
    stand_in = StandIn()
    base = work / "stress"
    server = Server(arges, environment(stand_in.url, base, "local"), work / "stress.log")
    server.call("text_to_audio", {"text": "warm"})
    handles, peak = server.handles(), server.peak()
    print(f"at rest: {peak} MiB, {handles} handles, {server.children()} children")

    stand_in.reset({"/v1/t2a_v2": ok(data={"audio": SOUND.hex()})})
    results, seconds = server.call("text_to_audio", {"text": "many"}, CALLS)
    check(not any(result.get("isError") for result in results), errors)
    tell(f"{CALLS} calls of 256 KiB of sound each, at once", seconds, server, f"{len(set(r['content'][0]['text'] for r in results))} files")

    for name, answer in [
        ("HTML", (200, "text/html", b"<html>" * 1000)),
        ("500s", (500, "text/plain", b"oops")),
        ("broken hex", ok(data={"audio": "49443x"})),
        ("an API error", failure(1026, "sensitive")),
        ("a length that is a lie", "lie"),
    ]:
        stand_in.reset({"/v1/t2a_v2": answer})
        results, seconds = server.call("text_to_audio", {"text": "x"}, CALLS)
        tell(f"{CALLS} calls answered with {name}", seconds, server, errors(results))

    stand_in.reset({"/v1/t2a_v2": "flood", "/files/film.mp4": "flood"})
    results, seconds = server.call("text_to_audio", {"text": "x"}, 8)
    tell("8 calls answered with 3 GB each", seconds, server, errors(results))
    results, seconds = server.call("generate_video", {"prompt": "x"}, 4)
    tell("4 films of 3 GB each", seconds, server, errors(results))

    stand_in.reset({"/v1/t2a_v2": "hang", "/v1/get_voice": "drip"})
    numbers = [server.send("tools/call", {"name": "text_to_audio", "arguments": {"text": "x"}}) for _ in range(CALLS // 2)]
    numbers += [server.send("tools/call", {"name": "list_voices", "arguments": {}}) for _ in range(CALLS // 2)]
    time.sleep(2)
    started = time.monotonic()
    for number in numbers:
        server.write({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}})
    stand_in.reset()
    results, _ = server.call("list_voices", {})
    check(not results[0].get("isError"), f"after cancelling: {results}")
    tell(f"{CALLS} calls that hang or drip, cancelled", time.monotonic() - started, server, "the next call is answered")

    time.sleep(1)
    left = server.handles() - handles
    unfinished = [name for name in os.listdir(base) if name.endswith(".part")]
    print(f"afterwards: {server.handles()} handles, {server.children()} children, {len(unfinished)} unfinished files")
    # Connections that are kept for later requests are no leak; 32 of them are.
    check(left < 32 and not unfinished and server.children() == 0, f"left over: {left} handles, {unfinished}")
    server.process.stdin.close()
    check(server.process.wait(20) == 0, "the server did not end with its input")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve())
