"""Runs training steps of Arges and of PyTorch with flash-linear-attention in turn on one GPU: train_cuda.py ARGES WORK.

First the losses of both are compared on a small checkpoint. Then every way of running the model in PyTorch that VARIANTS
names is timed, and the fastest is run in turn with Arges, whose head multiplies f32 rows, and once more with rounded ones
as PyTorch's does. A variant is WEIGHTS-STREAM-HEAD-ATTENTION: weights `masters`
(bf16 ones beside f32 masters) or `f32` (rounded in every step); the residual stream `bf16` or `f32`; the head `plain` or
`fused` (see fla_model.py); softmax attention `cudnn`, `flash` or `efficient`. PROFILE=1 also prints where the fastest
one's time goes, CHECK=0 leaves the comparison of losses out.
"""

import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from compare import HERE, run
from fla_model import Model, Optimizer, random_tokens, read_config, training_step

CONFIG = HERE / "../../docs/measurements/one-billion.json"
SMALL = (
    "--hidden 512 --layers 8 --heads 6 --head-dim 128 --kv-heads 2 --rotary-dim 64"
    " --experts 8 --intermediate 384 --vocab 4096"
)
VARIANTS = "masters-bf16-plain-cudnn masters-bf16-fused-cudnn masters-bf16-plain-flash f32-f32-plain-cudnn"
SEQUENCES, TOKENS, ROUNDS, RUNS = (
    int(os.environ.get(name, default))
    for name, default in [("SEQUENCES", 4), ("TOKENS", 4096), ("ROUNDS", 3), ("RUNS", 8)]
)
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}

program, work = sys.argv[1], Path(sys.argv[2])
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def arges(*flags, sequences=SEQUENCES, tokens=TOKENS, runs=RUNS):
    command = [program, "bench", "train", "--device", "cuda", "--dtype", "bf16", *flags]
    return json.loads(run([*command, "--sequences", sequences, "--tokens", tokens, "--runs", runs]))


def make(config, variant, directory=None):
    weights, stream, head, attention = variant.split("-")
    for backend, enable in [
        ("cudnn", torch.backends.cuda.enable_cudnn_sdp),
        ("flash", torch.backends.cuda.enable_flash_sdp),
        ("efficient", torch.backends.cuda.enable_mem_efficient_sdp),
        ("math", torch.backends.cuda.enable_math_sdp),
    ]:
        enable(attention == backend)
    with torch.device("cuda"):
        model = Model(config, torch.bfloat16, DTYPES[stream], head)
    model.load(directory) if directory else model.initialise()
    if weights == "masters":
        model.round_weights()
    return model, Optimizer(model)


def check(variant):
    """Losses of the first steps of a small model, which PyTorch and Arges begin from the same weights."""
    small = work / "small-f32"
    if not small.exists():
        run([program, "synth", small, "--dtype", "f32", "--no-tokenizer", *SMALL.split()])
    config, shape = read_config(small), (3, 1000)
    ours = arges("--model", small, sequences=shape[0], tokens=shape[1], runs=4)["case"]["losses"]
    model, optimizer = make(config, variant, small)
    take = random_tokens(config["vocab_size"])
    theirs = [training_step(model, optimizer, take(*shape).cuda()).item() for _ in ours]
    print(f"losses of the small model\n  Arges   {ours}\n  PyTorch {theirs}", flush=True)
    assert all(abs(a - b) < 2e-3 for a, b in zip(ours, theirs)), "other losses than Arges'"


class Torch:
    def __init__(self, variant):
        self.config = read_config(CONFIG)
        self.model, self.optimizer = make(self.config, variant)

    def times(self, runs):
        seconds = []
        for _ in range(runs + 1):
            tokens = torch.randint(0, self.config["vocab_size"], (SEQUENCES, TOKENS)).cuda()
            torch.cuda.synchronize()
            start = time.perf_counter()
            self.loss = training_step(self.model, self.optimizer, tokens).item()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def profile(self):
        tokens = torch.randint(0, self.config["vocab_size"], (SEQUENCES, TOKENS)).cuda()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            training_step(self.model, self.optimizer, tokens).item()
        kernels = sorted(profile.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
        for kernel in kernels[:40]:
            print(f"  {kernel.self_device_time_total / 1e3:8.2f} ms {kernel.count:5} {kernel.key[:100]}")


def clear():
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def main():
    work.mkdir(parents=True, exist_ok=True)
    variants = os.environ.get("VARIANTS", VARIANTS).split()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {SEQUENCES} sequences of {TOKENS} tokens")
    if os.environ.get("CHECK") != "0":
        check(variants[0])
    medians, theirs = {}, None
    for variant in variants:
        # One at a time: two would not fit.
        theirs = None
        clear()
        try:
            start = time.perf_counter()
            theirs = Torch(variant)
            theirs.times(1)
            ready = time.perf_counter() - start
            medians[variant] = statistics.median(theirs.times(RUNS))
        except (RuntimeError, torch.OutOfMemoryError) as error:
            print(f"{variant}: {str(error)[:2000]}", flush=True)
            continue
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"{variant}: {1e3 * medians[variant]:.1f} ms, {peak:.1f} GiB, ready after {ready:.0f} s", flush=True)
    fastest = min(medians, key=medians.get)
    if fastest != variant:
        theirs = None
        clear()
        theirs = Torch(fastest)
        theirs.times(1)
    variant = fastest
    if os.environ.get("PROFILE"):
        theirs.profile()
    pairs = []
    for _ in range(ROUNDS):
        torch.cuda.empty_cache()
        report = arges("--model", CONFIG, "--dummy", 1)
        rounded = arges("--model", CONFIG, "--dummy", 1, "--rounded-head")["case"]["seconds"]
        pairs.append((report["case"]["seconds"], rounded, statistics.median(theirs.times(RUNS))))
        ours, rounded, seconds = (f"{1e3 * seconds:.1f} ms" for seconds in pairs[-1])
        print(f"round: Arges {ours}, with a rounded head {rounded}, PyTorch {seconds}", flush=True)
    flops, tokens = report["case"]["flops"], SEQUENCES * TOKENS
    print(f"\nlosses: Arges {report['case']['losses'][-1]:.3f}, PyTorch {theirs.loss:.3f}")
    print(f"\n| | ms | tokens/s | TFLOP/s |\n|---|---|---|---|")
    names = ["Arges", "Arges, rounded head", f"PyTorch, {variant}"]
    for name, seconds in zip(names, zip(*pairs)):
        median = statistics.median(seconds)
        print(f"| {name} | {1e3 * median:.1f} | {tokens / median:,.0f} | {flops / median / 1e12:.0f} |")
    f32, rounded = (statistics.median(theirs / pair[i] for *pair, theirs in pairs) for i in range(2))
    print(f"\nArges is {f32:.2f} times as fast, with a rounded head {rounded:.2f} times.")


main()
