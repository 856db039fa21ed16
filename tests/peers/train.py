"""Runs training steps of Arges and of transformers in turn on the same weights: train.py ARGES WORK [f32] [bf16]."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from compare import HERE, SIZES, run

SEQUENCES, TOKENS, RUNS = 2, 2048, 3
ROUNDS = int(os.environ.get("ROUNDS", "3"))

program, work, dtypes = sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or ["f32", "bf16"]
work.mkdir(parents=True, exist_ok=True)
official, hugging_face = work / "A-f32", work / "A-f32-transformers"
for path, dialect in [(official, "minimax_m1"), (hugging_face, "minimax")]:
    if not path.exists():
        command = [program, "synth", path, "--dialect", dialect, "--dtype", "f32", "--no-tokenizer"]
        run(command + SIZES["A"].split())


def arges(dtype):
    shape = ["--sequences", SEQUENCES, "--tokens", TOKENS, "--runs", RUNS]
    report = json.loads(run([program, "bench", "train", "--model", official, "--dtype", dtype, *shape]))
    return report["case"]["seconds"], report["memory"]["peak_resident_bytes"]


def transformers(dtype):
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, HERE / "transformers_train.py", hugging_face, dtype, SEQUENCES, TOKENS, RUNS]
    report = json.loads(run(command, env=environment))
    return report["seconds"], report["peak_resident_bytes"]


print("| | Arges s/step | transformers s/step | ratio | Arges peak MiB | transformers peak MiB |")
print("|---|---|---|---|---|---|")
for dtype in dtypes:
    rounds = [(arges(dtype), transformers(dtype)) for _ in range(ROUNDS)]
    ours, theirs = ([pair[i][0] for pair in rounds] for i in (0, 1))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    peaks = [max(pair[i][1] for pair in rounds) / 2**20 for i in (0, 1)]
    print(
        f"| {dtype} | {statistics.median(ours):.2f} | {statistics.median(theirs):.2f} | {ratio:.2f}x"
        f" | {peaks[0]:.0f} | {peaks[1]:.0f} |",
        flush=True,
    )
