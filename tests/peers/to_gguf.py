"""Converts a checkpoint of `arges synth` by llama.cpp's own script: to_gguf.py LLAMA_CPP DIR OUT f32|bf16."""

import pathlib
import sys

checkout, directory, out, dtype = sys.argv[1:5]
sys.path[:0] = [checkout, f"{checkout}/gguf-py"]

from conversion.minimax import MiniMaxText01Model  # noqa: E402


def set_vocab(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])


if (pathlib.Path(directory) / "tokenizer.json").exists():
    # A made-up vocabulary splits text like nobody's; prompts come as ids, so that it does not matter how.
    MiniMaxText01Model.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
else:
    MiniMaxText01Model.set_vocab = set_vocab
MiniMaxText01Model._get_suppress_tokens = lambda self: None

import convert_hf_to_gguf  # noqa: E402

sys.argv = ["convert_hf_to_gguf.py", directory, "--outfile", out, "--outtype", dtype]
convert_hf_to_gguf.main()
