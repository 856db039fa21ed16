"""Speed of a training step of transformers with torch autograd on one checkpoint.

transformers_train.py DIR f32|bf16 SEQUENCES TOKENS RUNS. Prints JSON. Weights and AdamW's state are f32; bf16 is
torch's autocast.
"""

import json
import os
import resource
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

directory, dtype, sequences, length, runs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
torch.set_num_threads(os.cpu_count())
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
model.config.use_cache = False
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.1)
generator = torch.Generator().manual_seed(1)
seconds, losses = [], []
for _ in range(runs + 1):
    tokens = torch.randint(0, model.config.vocab_size, (sequences, length), generator=generator)
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - start)
    losses.append(loss.item())
report = {
    "seconds": statistics.median(seconds[1:]),
    "all_seconds": seconds,
    "losses": losses,
    "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}
print(json.dumps(report))
