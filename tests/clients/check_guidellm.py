#!/usr/bin/env python3
"""The server under guidellm's load: check_guidellm.py PROGRAM MODEL."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from served import Served

PROMPTS = ("What is a cache?", "Once upon a time", "The sea was calm and", "Call me Ishmael.", "Bees make honey of",
           "The capital of France", "Two plus two is", "A dog has four")
ANSWER_TOKENS = 24


class GuideLlm(unittest.TestCase):
    def test_concurrent_streams(self):
        program = pathlib.Path(sys.executable).parent / "guidellm"
        with Served() as server, tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
            # By itself it asks for 16384 tokens, more than the context holds.
            done = subprocess.run(
                [program, "benchmark", "--target", server.address, "--data", folder / "prompts.txt",
                 "--rate-type", "concurrent", "--rate", "4", "--max-requests", str(len(PROMPTS)),
                 "--output-path", folder / "report.json", "--disable-progress"],
                capture_output=True, text=True, check=False, timeout=600, cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": name,
                     "GUIDELLM__OPENAI__MAX_OUTPUT_TOKENS": str(ANSWER_TOKENS)})
            self.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-6000:])
            run = json.loads((folder / "report.json").read_text())["benchmarks"][0]
            totals = run["run_stats"]["requests_made"]
            self.assertEqual((totals["successful"], totals["errored"]), (len(PROMPTS), 0))
            for request in run["requests"]["successful"]:
                self.assertGreater(request["prompt_tokens"], 2)
                self.assertTrue(0 < request["output_tokens"] <= ANSWER_TOKENS, request)
                self.assertGreater(request["time_to_first_token_ms"], 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
