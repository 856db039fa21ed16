"""Speed of transformers on one checkpoint: transformers_speed.py DIR f32|bf16. Prints JSON."""

import json
import resource
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

RUNS, STEPS = 3, 32

directory, dtype = sys.argv[1], {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
torch.set_num_threads(__import__("os").cpu_count())
model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
generator = torch.Generator().manual_seed(1)


def tokens(batch, length):
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)


def prefill(length):
    speeds = []
    model(tokens(1, length), use_cache=True, logits_to_keep=1)
    for _ in range(RUNS):
        prompt = tokens(1, length)
        start = time.perf_counter()
        model(prompt, use_cache=True, logits_to_keep=1)
        speeds.append(length / (time.perf_counter() - start))
    return statistics.median(speeds)


def decode(batch):
    speeds = []
    cache = model(tokens(batch, 32), use_cache=True, logits_to_keep=1).past_key_values
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        for _ in range(STEPS):
            cache = model(tokens(batch, 1), past_key_values=cache, use_cache=True).past_key_values
        speeds.append(batch * STEPS / (time.perf_counter() - start))
    return statistics.median(speeds[1:])


with torch.inference_mode():
    report = {f"prefill {length}": prefill(length) for length in (512, 2048)}
    report |= {f"decode {batch}": decode(batch) for batch in (1, 8, 32)}
report["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(report))
