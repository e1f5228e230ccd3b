#!/usr/bin/env python3
"""The server through lm-eval's local-completions, with the server's own tokenizer: check_lm_eval.py PROGRAM MODEL.

A task of log-likelihoods: of two endings, which does the model find likelier?"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from served import Served

QUESTIONS = (("The capital of France is", ["Paris", "Berlin"], 0), ("The opposite of hot is", ["seven", "cold"], 1),
             ("Two plus two is", ["four", "green"], 0), ("A dog has four", ["legs", "seas"], 0),
             ("The sun rises in the", ["spoon", "east"], 1), ("Water freezes to", ["ice", "coal"], 0),
             ("One, two, three,", ["blue", "four"], 1), ("Bees make", ["honey", "steel"], 0))
TASK = """
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


class LmEval(unittest.TestCase):
    def test_log_likelihoods(self):
        program = pathlib.Path(sys.executable).parent / "lm_eval"
        with Served() as server, tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            data = folder / "endings.jsonl"
            lines = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS]
            data.write_text("\n".join(lines) + "\n")
            (folder / "endings.yaml").write_text(TASK.format(data=data))
            done = subprocess.run(
                [program, "run", "--model", "local-completions", "--tasks", "endings", "--include_path", folder,
                 "--output_path", folder / "results.json", "--model_args",
                 f"model={pathlib.Path(sys.argv[2]).stem},base_url={server.address}/v1/completions,"
                 "tokenizer_backend=remote,num_concurrent=4,max_retries=1"],
                capture_output=True, text=True, check=False, timeout=600, cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": name, "TOKENIZERS_PARALLELISM": "false"})
            self.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-6000:])
            results = [json.loads(f.read_text()) for f in folder.glob("results*.json")]
            self.assertGreaterEqual(results[0]["results"]["endings"]["acc,none"], 0.75)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
