"""Puts `arges serve` and llama.cpp's server under the same load in turn, and prints medians of paired ratios.

The load is `arges bench serve`: the same requests, by number, to both. ROUNDS (3) says how often each is measured,
CLIENTS (1,8,32) how many clients there are, REQUESTS (48) how many requests they send in all.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
# Model A of compare.py, with a tokenizer, since servers speak text.
SIZES = (
    "--hidden 512 --layers 8 --heads 8 --head-dim 64 --kv-heads 2 --rotary-dim 32"
    " --experts 8 --intermediate 1024 --vocab 8192"
)
CONTEXT, SEQUENCES = 1024, 32
ROUNDS = int(os.environ.get("ROUNDS", "3"))
CLIENTS = os.environ.get("CLIENTS", "1,8,32")
REQUESTS = os.environ.get("REQUESTS", "48")
LOAD = "--vocab 8000 --ignore-eos --prompt-tokens 64..512 --output-tokens 32..128 --warm-up 4".split()
FIGURES = [
    ("output tokens/s", lambda case: case["output_tokens_per_second"], True),
    ("first token p50, ms", lambda case: 1e3 * case["time_to_first_token_seconds"]["p50"], False),
    ("first token p99, ms", lambda case: 1e3 * case["time_to_first_token_seconds"]["p99"], False),
    ("between tokens p50, ms", lambda case: 1e3 * case["inter_token_latency_seconds"]["p50"], False),
    ("between tokens p99, ms", lambda case: 1e3 * case["inter_token_latency_seconds"]["p99"], False),
    ("whole p99, ms", lambda case: 1e3 * case["end_to_end_seconds"]["p99"], False),
]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def arges(program, model, port):
    command = [program, "serve", "--model", model, "--port", port]
    return command + ["--context", CONTEXT, "--kv-tokens", CONTEXT * SEQUENCES, "--max-sequences", SEQUENCES]


def llama_cpp(checkout, gguf, port):
    threads = os.cpu_count()
    command = [checkout / "build/bin/llama-server", "-m", gguf, "--port", port, "--no-ui"]
    command += ["-c", CONTEXT * SEQUENCES, "--parallel", SEQUENCES, "-t", threads, "-tb", threads]
    # Every request is computed, as prompts share nothing.
    return command + ["--cache-ram", 0]


def measure(command, port, model, program, log, round_number):
    """The cases of a load on a server that is started for it."""
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        server = subprocess.Popen([str(x) for x in command], stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"{url}/health", timeout=5):
                        break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"the server did not start:\n{log.read_text()}")
                    time.sleep(0.1)
            bench = [program, "bench", "serve", "--url", f"{url}/v1", "--model", model]
            bench += ["--clients", CLIENTS, "--requests", REQUESTS, "--seed", round_number, *LOAD]
            done = subprocess.run([str(x) for x in bench], stdout=subprocess.PIPE, text=True, check=True)
        finally:
            server.terminate()
            server.wait(60)
    cases = json.loads(done.stdout)["cases"]
    for case in cases:
        if case["errors"]:
            raise SystemExit(f"{command[0]}: {case['errors']}")
    return cases


def compare(program, checkout, work, dtype):
    model = work / f"A-{dtype}-serve"
    if not model.exists():
        command = [program, "synth", model, "--dtype", dtype, *SIZES.split()]
        subprocess.run([str(x) for x in command], check=True, stdout=subprocess.DEVNULL)
    gguf = work / f"{model.name}.gguf"
    if not gguf.exists():
        subprocess.run([sys.executable, HERE / "to_gguf.py", checkout, model, gguf, dtype], check=True)
    # Names, and the commands of servers.
    engines = {
        "arges": lambda port: arges(program, model, port),
        "llama.cpp": lambda port: llama_cpp(checkout, gguf, port),
    }
    results = {engine: [] for engine in engines}
    for round_number in range(ROUNDS):
        # The one that goes first does so every other time.
        for engine in sorted(engines, reverse=round_number % 2 == 1):
            port = free_port()
            log = work / f"serve-{engine}.log"
            cases = measure(engines[engine](port), port, model.name, program, log, round_number)
            results[engine].append(cases)
            speeds = ", ".join(f"{case['output_tokens_per_second']:.0f}" for case in cases)
            print(f"{dtype} round {round_number + 1} {engine}: {speeds} tokens/s", file=sys.stderr, flush=True)
    (work / f"serve-{dtype}.json").write_text(json.dumps(results, indent=1))
    print(f"\n| A-{dtype} | clients | arges | llama.cpp | arges is better by (least to most of {ROUNDS}) |")
    print("|---" * 5 + "|")
    for index, clients in enumerate(CLIENTS.split(",")):
        for name, figure, more_is_better in FIGURES:
            ours, theirs = ([figure(cases[index]) for cases in results[engine]] for engine in engines)
            ratios = [a / b if more_is_better else b / a for a, b in zip(ours, theirs)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {name} | {clients} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {ratio} |")
    sys.stdout.flush()


def main():
    program, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    checkout = Path(os.environ["LLAMA_CPP"]).resolve()
    for dtype in sys.argv[3:] or ["f32", "bf16"]:
        compare(program, checkout, work, dtype)


if __name__ == "__main__":
    main()
