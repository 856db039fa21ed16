"""Lightning attention of M1's heads, forward and backward, of Arges and of flash-linear-attention in turn on one GPU:
lightning_cuda.py ARGES WORK [TOKENS …]. Nothing is written to WORK."""

import json
import os
import statistics
import sys

import torch
from compare import run
from fla.ops.simple_gla import chunk_simple_gla
from fla_model import decays, lightning_by_definition

HEADS, DIM, CALLS, RUNS = 64, 128, 4, 9
ROUNDS = int(os.environ.get("ROUNDS", "3"))
CHUNKS = [int(chunk) for chunk in os.environ.get("CHUNKS", "64 128").split()]

program = sys.argv[1]
lengths = [int(length) for length in sys.argv[3:]] or [2048, 8192, 32768]
decay = decays(HEADS, 0, 80).cuda()


def inputs(tokens, seed=1):
    torch.manual_seed(seed)
    make = lambda: torch.randn(1, tokens, HEADS, DIM, device="cuda", dtype=torch.bfloat16).requires_grad_()
    return make(), make(), make(), torch.randn(1, tokens, HEADS, DIM, device="cuda", dtype=torch.bfloat16)


def attend(q, k, v, chunk):
    return chunk_simple_gla(q, k, v, g_gamma=decay, scale=1.0, chunk_size=chunk)[0]


def check(chunk):
    """Outputs and gradients beside those of the definition in f32."""
    q, k, v, do = inputs(700)
    got = [attend(q, k, v, chunk), *torch.autograd.grad(attend(q, k, v, chunk), (q, k, v), do)]
    q, k, v = (x.detach().float().requires_grad_() for x in (q, k, v))
    out = lightning_by_definition(q, k, v, decay)
    expected = [out, *torch.autograd.grad(out, (q, k, v), do.float())]
    errors = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(got, expected)]
    assert max(errors) < 1e-2, errors


def median_ms(body):
    """As `arges bench op`: several calls in one graph, timed by the device."""
    for _ in range(3):
        body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            body()
    times = []
    for _ in range(RUNS + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / CALLS)
    return statistics.median(times[1:])


def theirs(tokens, chunk):
    q, k, v, do = inputs(tokens)
    with torch.no_grad():
        forward = median_ms(lambda: attend(q, k, v, chunk))
    both = median_ms(lambda: torch.autograd.grad(attend(q, k, v, chunk), (q, k, v), do))
    return forward, both


def ours():
    lists = ",".join(map(str, lengths))
    report = json.loads(run([program, "bench", "op", "lightning", "--backward", "--prefill", lists]))
    return {case["size"]: (case["forward"]["milliseconds"], case["milliseconds"]) for case in report["cases"]}


torch.set_float32_matmul_precision("highest")
for chunk in CHUNKS:
    check(chunk)
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
rounds = []
for _ in range(ROUNDS):
    arges = ours()
    for tokens in lengths:
        fla = min((theirs(tokens, chunk) for chunk in CHUNKS), key=lambda times: times[1])
        rounds.append((tokens, arges[tokens], fla))
print("| tokens | Arges forward, ms | both, ms | flash-linear-attention forward, ms | both, ms | ratio of both |")
print("|---|---|---|---|---|---|")
for tokens in lengths:
    of_length = [(a, b) for t, a, b in rounds if t == tokens]
    median = lambda which, i: statistics.median(pair[which][i] for pair in of_length)
    ratio = statistics.median(b[1] / a[1] for a, b in of_length)
    cells = [median(0, 0), median(0, 1), median(1, 0), median(1, 1)]
    print(f"| {tokens:,} | " + " | ".join(f"{x:.3f}" for x in cells) + f" | {ratio:.2f} |")
