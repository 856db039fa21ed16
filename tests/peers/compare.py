"""Runs each engine on each model in turn, several rounds, and prints medians and ratios."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SIZES = {
    "A": "--hidden 512 --layers 8 --heads 8 --head-dim 64 --kv-heads 2 --rotary-dim 32"
    " --experts 8 --intermediate 1024 --vocab 8192",
    "B": "--hidden 1536 --layers 16 --heads 16 --head-dim 128 --kv-heads 4 --rotary-dim 64"
    " --experts 16 --intermediate 1280 --vocab 32000",
}
CASES = ["prefill 512", "prefill 2048", "decode 1", "decode 8", "decode 32"]
ROUNDS = int(os.environ.get("ROUNDS", "3"))
HERE = Path(__file__).parent


def run(command, **options):
    done = subprocess.run([str(x) for x in command], stdout=subprocess.PIPE, text=True, check=True, **options)
    return done.stdout


def arges(program, model, dtype):
    report = json.loads(run([program, "bench", "--model", model, "--dtype", dtype, "--steps", "32", "--runs", "3"]))
    speeds = {}
    for case in report["cases"]:
        size = case["tokens"] if case["case"] == "prefill" else case["sequences"]
        speeds[f"{case['case']} {size}"] = case["tokens_per_second"]
    memory = report["memory"]
    speeds["peak MiB"] = memory["peak_resident_bytes"] / 2**20
    speeds["read GB/s"] = report["device"]["read_bytes_per_second"] / 1e9
    one = next(case for case in report["cases"] if case["case"] == "decode" and case["sequences"] == 1)
    speeds["share of bandwidth at 1"] = one["share_of_read_bandwidth"]
    speeds["peak / (weights + caches)"] = memory["peak_resident_bytes"] / (
        memory["weight_bytes"] + memory["cache_bytes"]
    )
    return speeds


def transformers(model, dtype):
    threads = str(os.cpu_count())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    return json.loads(run([sys.executable, HERE / "transformers_speed.py", model, dtype], env=environment))


def llama_cpp(checkout, model, dtype, work):
    gguf = work / f"{model.name}.gguf"
    if not gguf.exists():
        run([sys.executable, HERE / "to_gguf.py", checkout, model, gguf, dtype])
    tools = Path(checkout) / "build/bin"
    threads = os.cpu_count()
    speeds, peak = {}, 0
    for case, flags in [("prefill 512", "-p 512 -n 0"), ("prefill 2048", "-p 2048 -n 0"), ("decode 1", "-p 0 -n 64")]:
        out = run([tools / "llama-bench", "-m", gguf, "-t", threads, "-r", 3, "-o", "json", *flags.split()])
        speeds[case] = statistics.median(json.loads(out)[0]["samples_ts"])
    for batch in (8, 32):
        flags = ["-t", threads, "-tb", threads, "-c", batch * 128, "-npp", 32, "-ntg", 32]
        flags += ["-npl", ",".join([str(batch)] * 3), "--output-format", "jsonl"]
        rows = [line for line in run([tools / "llama-batched-bench", "-m", gguf, *flags]).splitlines()]
        rows = [json.loads(line) for line in rows if line.startswith("{")]
        speeds[f"decode {batch}"] = statistics.median(row["speed_tg"] for row in rows)
    return speeds


def compare(program, work, name):
    size, dtype = name.split("-")
    # The same seed gives tensors of one name the same weights, whatever the dialect.
    official, hugging_face = work / f"{name}", work / f"{name}-transformers"
    for path, dialect in [(official, "minimax_m1"), (hugging_face, "minimax")]:
        if not path.exists():
            command = [program, "synth", path, "--dialect", dialect, "--dtype", dtype, "--no-tokenizer"]
            run(command + SIZES[size].split())
    engines = {
        "arges": lambda: arges(program, official, dtype),
        "transformers": lambda: transformers(hugging_face, dtype),
    }
    if checkout := os.environ.get("LLAMA_CPP"):
        engines["llama.cpp"] = lambda: llama_cpp(checkout, official, dtype, work)
    results = {engine: [] for engine in engines}
    for round_number in range(ROUNDS):
        for engine, measure in engines.items():
            results[engine].append(measure())
            print(f"{name} round {round_number + 1} {engine}: {results[engine][-1]}", file=sys.stderr, flush=True)
    (work / f"{name}.json").write_text(json.dumps(results, indent=1))
    medians = {
        engine: {case: statistics.median(r[case] for r in rounds) for case in rounds[0]}
        for engine, rounds in results.items()
    }
    print(f"\n| {name}, tokens/s | " + " | ".join(engines) + " | ratio to the best peer |")
    print("|---" * (len(engines) + 2) + "|")
    for case in CASES:
        values = [medians[engine][case] for engine in engines]
        ratio = values[0] / max(values[1:])
        print(f"| {case} | " + " | ".join(f"{value:.1f}" for value in values) + f" | {ratio:.2f} |")
    for case in sorted(set(medians["arges"]) - set(CASES)):
        print(f"| {case} | {medians['arges'][case]:.2f} |" + " |" * len(engines))
    sys.stdout.flush()


def main():
    program, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    if not os.environ.get("LLAMA_CPP"):
        print("llama.cpp is left out: LLAMA_CPP names no built checkout", file=sys.stderr)
    for name in sys.argv[3:] or ["A-f32", "A-bf16", "B-bf16"]:
        compare(program, work, name)


if __name__ == "__main__":
    main()
