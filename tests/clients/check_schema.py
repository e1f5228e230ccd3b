#!/usr/bin/env python3
"""The server under a schema fuzzer, by its own /openapi.json, with a tiny model: check_schema.py PROGRAM MODEL.

No request may bring a 5xx, a reply that the document does not tell of, or one that is accepted although the document
says that it is wrong."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

from served import Served

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "negative_data_rejection")


# Many answers are as long as the context.
TINY = pathlib.Path(__file__).parents[1] / "golden" / "tiny" / "llama.gguf"


class Schema(unittest.TestCase):
    def test_requests_made_from_the_schema(self):
        fuzzer = pathlib.Path(sys.executable).parent / "schemathesis"
        with Served("--ctx", "256", model=TINY) as server, tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [fuzzer, "run", f"{server.address}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", "40",
                 "--phases", "examples,coverage,fuzzing", "--seed", "1", "--request-timeout", "60", "--no-color",
                 "--warnings", "off", "--generation-database", "none", "--continue-on-failure"],
                cwd=folder, capture_output=True, text=True, check=False, timeout=900)
            self.assertEqual(done.returncode, 0, done.stdout[-12000:] + done.stderr[-2000:])
            self.assertIn("Test cases", done.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
