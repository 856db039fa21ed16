"""`arges serve` on a free port of the loopback, over a random checkpoint or the model in the program."""

import json
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

START_SECONDS = 120
STOP_SECONDS = 20


class Server:
    """Runs the server as a context manager; `base_url` ends in /v1."""

    def __init__(self, arges: str, work: pathlib.Path, random: bool):
        self.arges = arges
        self.work = work
        self.model = work / "model" if random else None
        self.log = work / f"serve-{'random' if random else 'nano'}.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.base_url = f"{self.root}/v1"

    def __enter__(self) -> "Server":
        command = [self.arges, "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--context", "8192", "--max-sequences", "16"]
        if self.model:
            shutil.rmtree(self.model, ignore_errors=True)
            synth = [self.arges, "synth", self.model, "--hidden", "64", "--layers", "8", "--vocab", "512"]
            subprocess.run(synth, check=True, stdout=subprocess.DEVNULL)
            command += ["--model", self.model]
        self.process = subprocess.Popen(command, stdout=self.log.open("w"), stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise SystemExit(f"the server did not start:\n{self.log.read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        """Stops the server as an operator would; a server that does not go is a failure."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SystemExit("the server did not stop on SIGTERM")
        if code != 0:
            raise SystemExit(f"the server ended with {code}:\n{self.log.read_text()}")

    def is_ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False

    def resident_mib(self) -> int:
        """Memory that the process has, on Linux."""
        pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 // 2**20

    def get(self, path: str):
        """Status and JSON of a plain GET."""
        return self.request(urllib.request.Request(self.root + path))

    def post(self, path: str, body: bytes):
        """Status and JSON of a POST of raw bytes."""
        headers = {"content-type": "application/json"}
        return self.request(urllib.request.Request(self.root + path, data=body, headers=headers))

    @staticmethod
    def request(request: urllib.request.Request):
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
