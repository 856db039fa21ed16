"""A stand-in for MiniMax's API that records what it is asked, and misbehaves where it is told to."""

import email.parser
import email.policy
import http.server
import json
import threading
import time

HEX = b"ID3\x04\x00\xff some sound".hex()
FILE = b"the bytes of a file"
MEGABYTE = b" " * (1 << 20)


class StandIn:
    """A server on a free port of the loopback. `answers` replaces answers by path; see `Handler.answer`."""

    def __init__(self):
        self.received = []
        self.answers = {}
        stand_in = self

        class Bound(Handler):
            server_state = stand_in

        self.server = Quiet(("127.0.0.1", 0), Bound)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self, answers=None):
        self.received = []
        self.answers = answers or {}


class Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_):
        """A client that goes away is no error here."""


def ok(**fields):
    return {**fields, "base_resp": {"status_code": 0, "status_msg": "success"}}


def failure(code, message):
    return {"base_resp": {"status_code": code, "status_msg": message}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: StandIn

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.handle_request(b"")

    def do_POST(self):
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.handle_request(body)

    def handle_request(self, body):
        path = self.path.split("?")[0]
        self.server_state.received.append(self.recorded(body))
        answer = self.server_state.answers.get(path)
        if callable(answer):
            answer = answer()
        if answer is None:
            answer = self.usual(path, body)
        self.answer(answer)

    def recorded(self, body):
        """What of a request matters: to the API all, to other places method and path."""
        request = {"method": self.command, "path": self.path}
        if not self.path.startswith("/v1/"):
            return request
        kind = self.headers.get("content-type", "")
        request["headers"] = {
            name: self.headers.get(name) for name in ("authorization", "mm-api-source")
        } | {"content-type": kind.split(";")[0]}
        if kind.startswith("multipart/"):
            request["form"] = parse_form(kind, body)
        elif body:
            request["json"] = json.loads(body)
        return request

    def usual(self, path, body):
        url = self.server_state.url
        by_address = body[:1] == b"{" and json.loads(body).get("output_format") == "url"
        audio = f"{url}/files/a.mp3?sign=x%2Fy" if by_address else HEX
        images = [f"{url}/files/{number}.jpg" for number in range(2)]
        voices = [{"voice_name": "Ann's", "voice_id": "ann"}, {"voice_name": 'B "o"', "voice_id": "bo"}]
        answers = {
            "/v1/t2a_v2": ok(data={"audio": audio}),
            "/v1/music_generation": ok(data={"audio": audio}),
            "/v1/get_voice": ok(system_voice=voices, voice_cloning=[{"voice_id": "mine"}]),
            "/v1/files/upload": ok(file={"file_id": 77}),
            "/v1/voice_clone": ok(demo_audio=f"{url}/files/demo.wav"),
            "/v1/voice_design": ok(voice_id="designed", trial_audio=HEX),
            "/v1/video_generation": ok(task_id="task-5"),
            "/v1/query/video_generation": ok(status="Success", file_id="file-6"),
            "/v1/files/retrieve": ok(file={"download_url": f"{url}/files/film.mp4"}),
            "/v1/image_generation": ok(data={"image_urls": images}),
        }
        return answers.get(path, FILE if path.startswith("/files/") else (404, "text/plain", b"not found"))

    def answer(self, answer):
        """A dict is JSON, bytes are a file, a tuple is (status, type, body), a text is a way to misbehave."""
        if isinstance(answer, dict):
            answer = (200, "application/json", json.dumps(answer).encode())
        if isinstance(answer, bytes):
            answer = (200, "application/octet-stream", answer)
        if isinstance(answer, str):
            return getattr(self, answer)()
        status, kind, body = answer
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("Trace-Id", "trace-1")
        self.end_headers()
        self.wfile.write(body)

    def hang(self):
        time.sleep(3600)

    def drip(self):
        self.send_response(200)
        self.send_header("content-length", "100000")
        self.end_headers()
        while True:
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.2)

    def lie(self):
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b'{"base_resp": {"status_code": 0}}')
        self.close_connection = True

    def flood(self):
        """3 GB, without a length."""
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for _ in range(3000):
            self.wfile.write(MEGABYTE)


def parse_form(kind, body):
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"content-type: " + kind.encode() + b"\r\n\r\n" + body
    )
    return [
        {
            "name": part.get_param("name", header="content-disposition"),
            "filename": part.get_filename(),
            "type": part["content-type"],
            "bytes": part.get_payload(decode=True).decode(),
        }
        for part in message.iter_parts()
    ]
