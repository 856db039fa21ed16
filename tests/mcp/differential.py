"""MiniMax's own Python server and this one, driven alike: differential.py ARGES WORK PYTHON

The requests must be equal, and so must the results, but for the repairs that are listed here and in docs/mcp.md. A
repair that makes no difference any more is a failure too.
"""

import asyncio
import json
import pathlib
import shutil
import sys

from server import environment
from servers import ORIGINAL, connected, plain, text_of
from standin import StandIn, failure, ok

PICTURE = "picture.jpg"
RECORDING = "recording.mp3"
SPEECH = {
    "text": "hello, world",
    "voice_id": "bo",
    "model": "speech-02-turbo",
    "speed": 1.5,
    "vol": 2,
    "pitch": -3,
    "emotion": "sad",
    "sample_rate": 8000,
    "bitrate": 64000,
    "channel": 2,
    "format": "flac",
    "language_boost": "Chinese,Yue",
}
SONG = {"prompt": "sad piano", "lyrics": "[Verse]\nrain, rain"}
FILM = {"prompt": "a cat"}

# (name, tool, arguments, answers of the API in place of the usual, modes). {base} is the base path, {url} the stand-in.
BOTH = ("url", "local")
EQUAL = [
    ("speech", "text_to_audio", {"text": "hello"}, {}, BOTH),
    ("speech, all arguments", "text_to_audio", SPEECH, {}, BOTH),
    ("speech, Chinese", "text_to_audio", {"text": "你好，世界！今天天气很好"}, {}, BOTH),
    ("speech, text of one letter", "text_to_audio", {"text": "x"}, {}, BOTH),
    ("speech, numbers as texts", "text_to_audio", {"text": "x", "speed": "1.5", "pitch": "2"}, {}, BOTH),
    ("speech, unknown argument", "text_to_audio", {"text": "x", "stream": True}, {}, BOTH),
    ("speech into a folder", "text_to_audio", {"text": "x", "output_directory": "new"}, {}, BOTH),
    ("speech into an absolute folder", "text_to_audio", {"text": "x", "output_directory": "{base}/abs"}, {}, BOTH),
    ("voices", "list_voices", {}, {}, BOTH),
    ("voices, a kind", "list_voices", {"voice_type": "voice_cloning"}, {}, BOTH),
    ("voices, none", "list_voices", {}, {"/v1/get_voice": ok(system_voice=None)}, BOTH),
    ("clone", "voice_clone", {"voice_id": "mine", "file": "{base}/" + RECORDING, "text": "a sample"}, {}, BOTH),
    ("clone without a sample", "voice_clone", {"voice_id": "mine", "file": "{base}/" + RECORDING, "text": ""},
     {"/v1/voice_clone": ok()}, BOTH),
    ("clone from an address", "voice_clone",
     {"voice_id": "mine", "file": "{url}/files/r.mp3", "text": "a sample", "is_url": True}, {}, BOTH),
    ("design", "voice_design", {"prompt": "deep", "preview_text": "good night, all"}, {}, ("local",)),
    ("design, named", "voice_design", {"prompt": "deep", "preview_text": "hi", "voice_id": "v"}, {}, ("local",)),
    ("film", "generate_video", FILM, {}, BOTH),
    ("film, all arguments", "generate_video",
     FILM | {"model": "MiniMax-Hailuo-02", "duration": 6, "resolution": "768P",
             "first_frame_image": "https://example.com/cat.jpg", "output_directory": "films"}, {}, BOTH),
    ("film from a picture", "generate_video",
     FILM | {"model": "I2V-01", "first_frame_image": "{base}/" + PICTURE}, {}, BOTH),
    ("film without waiting", "generate_video", FILM | {"async_mode": True}, {}, BOTH),
    ("film, numeric ids", "generate_video", FILM,
     {"/v1/video_generation": ok(task_id=123456789012345), "/v1/query/video_generation": ok(status="Success", file_id=98)},
     ("url",)),
    ("query", "query_video_generation", {"task_id": "task-5"}, {}, BOTH),
    ("query while processing", "query_video_generation", {"task_id": "task-5"},
     {"/v1/query/video_generation": ok(status="Processing")}, BOTH),
    ("pictures", "text_to_image", {"prompt": "a cat in a hat"}, {}, ("url",)),
    ("pictures, all arguments", "text_to_image",
     {"prompt": "a cat", "model": "image-01-live", "aspect_ratio": "16:9", "n": 2, "prompt_optimizer": False}, {},
     ("url",)),
    ("song", "music_generation", SONG, {}, BOTH),
    ("song, all arguments", "music_generation",
     SONG | {"sample_rate": 44100, "bitrate": 256000, "format": "wav"}, {}, BOTH),
]

# The same, with what is repaired. Requests are equal unless the last item says that they are not.
ERRORS = "errors are results with isError, with code and Trace-Id"
CHECKED = "arguments are checked before anything is sent"
REPAIRS = [
    ("the API's error", "text_to_audio", {"text": "x"}, {"/v1/t2a_v2": failure(1026, "sensitive")}, BOTH, ERRORS, True),
    ("a wrong key", "list_voices", {}, {"/v1/get_voice": failure(1004, "login fail")}, BOTH, ERRORS, True),
    ("an unverified owner", "voice_clone", {"voice_id": "v", "file": "{base}/" + RECORDING, "text": ""},
     {"/v1/files/upload": failure(2038, "forbidden")}, BOTH, ERRORS, True),
    ("a status of HTTP", "text_to_image", {"prompt": "x"},
     {"/v1/image_generation": (400, "text/plain", b"bad")}, BOTH, ERRORS, True),
    ("a page of HTML", "text_to_audio", {"text": "x"},
     {"/v1/t2a_v2": (200, "text/html", b"<html>")}, BOTH, ERRORS, True),
    ("no audio in the answer", "text_to_audio", {"text": "x"}, {"/v1/t2a_v2": ok(data={})}, BOTH, ERRORS, True),
    ("no song in the answer", "music_generation", SONG, {"/v1/music_generation": ok(data={})}, BOTH,
     "a song that is not there is an error, not an empty address or file", True),
    ("audio that is not hexadecimal", "text_to_audio", {"text": "x"},
     {"/v1/t2a_v2": ok(data={"audio": "49443x"})}, ("local",), ERRORS, True),
    ("a task that failed", "query_video_generation", {"task_id": "t"},
     {"/v1/query/video_generation": ok(status="Fail")}, BOTH, ERRORS, True),
    ("a film that failed", "generate_video", FILM,
     {"/v1/query/video_generation": ok(status="Fail")}, BOTH, ERRORS, True),
    ("a download that fails", "generate_video", FILM, {"/files/film.mp4": (403, "text/plain", b"expired")},
     ("local",), "an error tells where what was made can be found", True),
    ("a sample that fails", "voice_clone", {"voice_id": "v", "file": "{base}/" + RECORDING, "text": "t"},
     {"/files/demo.wav": (403, "text/plain", b"expired")}, ("local",),
     "a failed download is told, not saved as the file", True),
    ("a passing fault", "list_voices", {},
     {"/v1/get_voice": None}, BOTH, "what may be sent again is, after a pause", False),
    ("sample of a design", "voice_design", {"prompt": "deep", "preview_text": "hi"}, {}, ("url",),
     "the sample is audio content, not hexadecimal text", True),
    ("pictures as files", "text_to_image", {"prompt": "a cat in a hat"}, {}, ("local",),
     "paths are listed as texts, not as PosixPath('…')", True),
    ("deep folder", "text_to_audio", {"text": "x", "output_directory": "a/b/c"}, {}, ("local",),
     "missing parents of a folder are made", True),
    ("folder outside", "text_to_audio", {"text": "x", "output_directory": "../outside"}, {}, ("local",),
     "nothing is written outside of the base path", False),
    ("slash in the text", "text_to_audio", {"text": "a/b: c?"}, {}, ("local",),
     "characters that lead out of a folder, or that file systems refuse, become _", True),
    ("speed out of range", "text_to_audio", {"text": "x", "speed": 9}, {}, BOTH, CHECKED, False),
    ("ten pictures", "text_to_image", {"prompt": "x", "n": 10}, {}, BOTH, CHECKED, False),
    ("unknown format", "text_to_audio", {"text": "x", "format": "exe"}, {}, BOTH, CHECKED, False),
    ("empty text", "text_to_audio", {"text": ""}, {}, BOTH, CHECKED, True),
    ("empty prompt", "generate_video", {}, {}, BOTH, CHECKED, True),
    ("null", "text_to_audio", {"text": "x", "output_directory": None}, {}, BOTH, "null is as good as absent", False),
    ("recording that is not there", "voice_clone", {"voice_id": "v", "file": "{base}/none.mp3", "text": ""}, {}, BOTH,
     ERRORS, True),
    ("clone without text", "voice_clone", {"voice_id": "v", "file": "{base}/" + RECORDING},
     {"/v1/voice_clone": ok()}, BOTH, "the text of a sample may be left out, as the description always said", False),
    ("picture of another kind", "generate_video", FILM | {"first_frame_image": "{base}/picture.png"}, {}, BOTH,
     "a PNG is sent as image/png", False),
    ("reserved characters in a task", "query_video_generation", {"task_id": "a&b=c/d"}, {}, ("url",),
     "an id is escaped in the address", False),
    ("similar name", "play_audio", {"input_file_path": "{base}/recordings.mp3"}, {}, ("url",),
     "names of other files in the folder are not told", True),
]


def prepared(base):
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    (base / RECORDING).write_bytes(b"a recording")
    (base / PICTURE).write_bytes(b"\xff\xd8\xff a picture")
    (base / "picture.png").write_bytes(b"\x89PNG a picture")


def made(base, url):
    """Names and bytes of new files, also of those outside of the base path."""
    files = {}
    for path in sorted(base.parent.rglob("*")):
        if path.is_file() and path.name not in (RECORDING, PICTURE, "picture.png"):
            files[plain(str(path), base, url).replace(str(base.parent), "PARENT")] = path.read_bytes().decode("latin-1")
    return files


def once(fault):
    """An answer that is a fault at first, and then the usual one."""
    left = [fault]
    return lambda: left.pop() if left else None


async def run(session, stand_in, base, tool, arguments, answers):
    prepared(base)
    answers = dict(answers)
    for path, answer in answers.items():
        if answer is None:
            answers[path] = once((503, "text/plain", b"busy"))
    stand_in.reset(answers)
    fill = lambda value: value.replace("{base}", str(base)).replace("{url}", stand_in.url) if isinstance(value, str) else value
    result = await session.call_tool(tool, {name: fill(value) for name, value in arguments.items()})
    requests = json.loads(plain(json.dumps(stand_in.received), base, stand_in.url))
    outcome = {
        "text": plain(text_of(result), base, stand_in.url),
        "error": bool(result.isError),
        "files": made(base, stand_in.url),
    }
    return requests, outcome


def shown(value):
    return json.dumps(value, ensure_ascii=False)[:600]


def compare_schemas(original, ours):
    """Names, arguments, defaults and required arguments; ours has image_to_video, of the JavaScript server, beside."""
    failures = []
    ours = {tool.name: tool.inputSchema for tool in ours}
    theirs = {tool.name: tool.inputSchema for tool in original}
    if set(ours) - set(theirs) != {"image_to_video"} or set(theirs) - set(ours):
        failures.append(f"tools: {sorted(theirs)} and {sorted(ours)}")
    for name in theirs:
        for argument, schema in theirs[name]["properties"].items():
            mine = ours[name]["properties"].get(argument)
            if mine is None or (schema.get("default") or None) != (mine.get("default") or None):
                failures.append(f"{name}.{argument}: {shown(schema)} and {shown(mine)}")
        if set(ours[name]["properties"]) != set(theirs[name]["properties"]):
            failures.append(f"{name}: arguments {sorted(ours[name]['properties'])}")
        # An empty prompt was an error without being required.
        required = set(theirs[name].get("required", [])) - {"text"} | ({"text"} if name == "text_to_audio" else set())
        required |= {"prompt"} if name in ("generate_video", "text_to_image") else set()
        if set(ours[name].get("required", [])) != required:
            failures.append(f"{name}: required {ours[name].get('required')} and {required}")
    return failures


async def main(arges, work, python):
    stand_in = StandIn()
    failures, compared, repaired = [], 0, 0
    for mode in BOTH:
        # The same folder for both, one after the other, so that paths are equal.
        base = work / "differential" / "base"
        prepared(base)
        env = environment(stand_in.url, base, mode)
        log = work / "differential.log"
        async with connected(python, ORIGINAL, env, log) as original, connected(arges, ["mcp", "serve"], env, log) as ours:
            if mode == "url":
                failures += compare_schemas((await original.list_tools()).tools, (await ours.list_tools()).tools)
            for name, tool, arguments, answers, modes in EQUAL:
                if mode not in modes:
                    continue
                theirs = await run(original, stand_in, base, tool, arguments, answers)
                mine = await run(ours, stand_in, base, tool, arguments, answers)
                compared += 1
                if theirs != mine or mine[1]["error"]:
                    failures.append(f"{name} ({mode}):\n  original {shown(theirs)}\n  arges    {shown(mine)}")
            for name, tool, arguments, answers, modes, why, same_requests in REPAIRS:
                if mode not in modes:
                    continue
                theirs = await run(original, stand_in, base, tool, arguments, answers)
                mine = await run(ours, stand_in, base, tool, arguments, answers)
                repaired += 1
                if (theirs[0] == mine[0]) != same_requests or (same_requests and theirs[1] == mine[1]):
                    failures.append(f"{name} ({mode}), {why}:\n  original {shown(theirs)}\n  arges    {shown(mine)}")
                else:
                    print(f"{name} ({mode}): {why}\n  original {shown(theirs[1])}\n  arges    {shown(mine[1])}")
    for failure_text in failures:
        print(f"FAILED {failure_text}")
    print(f"{compared} calls equal and {repaired} repaired, {len(failures)} failed")
    return 1 if failures or compared == 0 else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve(), sys.argv[3])))
