"""Compares Arges with transformers on checkpoints that Arges wrote: check.py ARGES WORK"""

import json
import pathlib
import re
import subprocess
import sys

import torch
import transformers

TOLERANCE = 1e-3
# More than a block of 256 tokens, transformers' unit of lightning attention.
PROMPT_TOKENS = 300
NEW_TOKENS = 32
TEXT = "Naïve café, 東京 🚀\n\n  for i in range(10): print(i * 3.14)\t"

# transformers' own dialect. Figures that could be taken for one another differ; six heads have slopes of their
# own in this dialect; and weights are large enough for every part of the model to move the result.
CONFIG = {
    "architectures": ["MiniMaxForCausalLM"],
    "model_type": "minimax",
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_attn_alpha_factor": 1.5,
    "linear_attn_beta_factor": 1.25,
    "full_attn_alpha_factor": 2.0,
    "full_attn_beta_factor": 1.75,
    "mlp_alpha_factor": 1.125,
    "mlp_beta_factor": 2.25,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}

# Name, changes of the configuration, arguments of `arges synth`.
CASES = [
    ("f32", {}, ["--dtype", "f32"]),
    ("bf16 in shards", {}, ["--dtype", "bf16", "--shard-bytes", "200000"]),
    ("f16", {}, ["--dtype", "f16"]),
    ("tied embeddings, one expert", {
        "tie_word_embeddings": True,
        "num_local_experts": 1,
        "num_experts_per_tok": 1,
    }, ["--dtype", "f32"]),
]

# What transformers stores and Arges does not: it follows from the configuration.
DECAYS = re.compile(r"model\.layers\.\d+\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)")


class Case:
    """A checkpoint written by Arges and what both programs make of it."""

    def __init__(self, arges: str, directory: pathlib.Path, changes: dict, flags: list[str]):
        self.arges, self.directory = arges, directory
        directory.mkdir(parents=True, exist_ok=True)
        config = directory.with_suffix(".config.json")
        config.write_text(json.dumps(CONFIG | changes))
        # Under another seed two experts may be so close for a token that rounding decides between them.
        self.run("synth", directory, "--config", config, "--seed", "1", "--overwrite", *flags)
        self.model, self.loading = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        self.model.eval()
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, CONFIG["vocab_size"], (PROMPT_TOKENS,), generator=generator)

    def run(self, *arguments) -> str:
        result = subprocess.run([self.arges, *map(str, arguments)], capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"arges {arguments[0]}: {result.stderr.strip()}")
        return result.stdout

    def run_on_model(self, command: str, *arguments) -> dict:
        output = self.run(command, "--model", self.directory, "--dtype", "f32", "--json", *arguments)
        return json.loads(output)

    def prompt_file(self) -> str:
        file = self.directory.with_suffix(".ids")
        file.write_text(",".join(map(str, self.ids.tolist())))
        return f"@{file}"

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids[None]).logits[0].double()

    def log_probabilities(self) -> torch.Tensor:
        """Of each token of the prompt after the first, by transformers."""
        scores = torch.log_softmax(self.logits(self.ids), -1)
        return scores[:-1].gather(1, self.ids[1:, None])[:, 0]


def every_tensor_is_found(case: Case) -> tuple[bool, str]:
    missing = case.loading["missing_keys"]
    unknown = [key for key in missing if not DECAYS.fullmatch(key)]
    wrong = [*unknown, *case.loading["unexpected_keys"], *case.loading["mismatched_keys"]]
    return not wrong, f"wrong: {wrong}" if wrong else f"{len(missing)} decay buffers are computed by transformers"


def log_probabilities_are_the_same(case: Case) -> tuple[bool, str]:
    ours = torch.tensor(case.run_on_model("score", "--ids", case.prompt_file())["logprobs"][1:], dtype=torch.double)
    theirs = case.log_probabilities()
    difference = (ours - theirs).abs()
    largest, mean = difference.max().item(), difference.mean().item()
    told = f"largest difference {largest:.1e}, mean {mean:.1e}, over {len(theirs)} tokens"
    return len(ours) == len(theirs) and largest < TOLERANCE, told


def greedy_tokens_are_the_same(case: Case) -> tuple[bool, str]:
    answer = case.run_on_model(
        "generate", "--ids", case.prompt_file(), "--max-tokens", NEW_TOKENS, "--ignore-eos"
    )["ids"]
    # Given our tokens so far, the next one must be transformers' choice too.
    best = case.logits(torch.cat([case.ids, torch.tensor(answer)])).topk(2, -1)
    rows = slice(PROMPT_TOKENS - 1, -1)
    margin = (best.values[rows, 0] - best.values[rows, 1]).min().item()
    same = len(answer) == NEW_TOKENS and answer == best.indices[rows, 0].tolist()
    return same, f"{len(answer)} tokens, smallest lead over the second best {margin:.1e}"


def text_becomes_the_same_ids(case: Case) -> tuple[bool, str]:
    ours = case.run_on_model("score", TEXT)["ids"]
    theirs = transformers.AutoTokenizer.from_pretrained(case.directory)(TEXT)["input_ids"]
    return ours == theirs, f"{len(ours)} and {len(theirs)} tokens"


def every_parameter_counts(case: Case) -> tuple[bool, str]:
    """That the comparison would notice a parameter in the wrong order or scale."""
    right = case.log_probabilities()
    effects = {}
    for name, parameter in case.model.named_parameters():
        saved = parameter.data.clone()
        parameter.data = 0.9 * saved.flip(0)
        effects[name] = (case.log_probabilities() - right).abs().max().item()
        parameter.data = saved
    # The only expert's weight is 1, whatever its router says.
    if case.model.config.num_local_experts == 1:
        effects = {name: effect for name, effect in effects.items() if ".gate.weight" not in name}
    least = min(effects, key=effects.get)
    return effects[least] > 10 * TOLERANCE, f"{least} the least, by {effects[least]:.1e}"


CHECKS = [
    every_tensor_is_found,
    log_probabilities_are_the_same,
    greedy_tokens_are_the_same,
    text_becomes_the_same_ids,
    every_parameter_counts,
]


def results(arges: str, directory: pathlib.Path, changes: dict, flags: list[str]):
    """Whether each check of a checkpoint passed, and what it tells."""
    try:
        case = Case(arges, directory, changes, flags)
    except Exception as error:
        yield False, f"it is written and loads: {error}"
        return
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            good, told = check(case)
        except Exception as error:
            good, told = False, str(error)
        yield good, f"{name}: {told}"


def main() -> int:
    arges, work = sys.argv[1], pathlib.Path(sys.argv[2])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, both sides in f32")
    passed = failed = 0
    for name, changes, flags in CASES:
        print(f"{name}:")
        for good, told in results(arges, work / name.replace(" ", "-").replace(",", ""), changes, flags):
            passed, failed = passed + good, failed + (not good)
            print(f"  {'ok' if good else 'FAILED'}  {told}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
