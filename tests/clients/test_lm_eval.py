"""lm-eval over /v1/completions: one task of likelihoods and one of generation, from a file made here."""

import json
import pathlib
import tempfile
import unittest

SERVER = None  # set by main.py

LIKELIHOOD = """
task: arges_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["42", "seventy", "no"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""

GENERATION = """
task: arges_sum
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<end_of_sentence>"], max_gen_toks: 200, temperature: 0}}
filter_list: [{{name: last, filter: [{{function: regex, regex_pattern: "Answer: (\\\\d+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match}}]
"""


class LmEval(unittest.TestCase):
    def test_one_task_of_likelihoods_and_one_of_generation(self):
        import lm_eval
        from lm_eval.tasks import TaskManager

        with tempfile.TemporaryDirectory() as directory:
            directory = pathlib.Path(directory)
            turn = "<begin_of_document><beginning_of_sentence>user name=user\n{}<end_of_sentence>\n<beginning_of_sentence>ai name=assistant\n"
            sums = [(17, 25), (31, 11), (40, 2), (20, 22)]
            rows = [{"question": turn.format(f"What is {a} + {b}?"), "answer": str(a + b)} for a, b in sums]
            data = directory / "sums.json"
            data.write_text("\n".join(json.dumps(row) for row in rows))
            (directory / "choice.yaml").write_text(LIKELIHOOD.format(data=data))
            (directory / "sum.yaml").write_text(GENERATION.format(data=data))
            arguments = {
                "base_url": f"{SERVER.base_url}/completions",
                "model": "arges-nano",
                "tokenizer_backend": "remote",
                "num_concurrent": 2,
                "max_length": 4096,
            }
            results = lm_eval.simple_evaluate(
                model="local-completions",
                model_args=arguments,
                tasks=["arges_choice", "arges_sum"],
                task_manager=TaskManager(include_path=str(directory), include_defaults=False),
                bootstrap_iters=0,
            )["results"]
        self.assertIn("acc,none", results["arges_choice"])
        self.assertGreaterEqual(results["arges_sum"]["exact_match,last"], 0.5, results)
