#!/usr/bin/env python3
"""What deploy/ says of the program is true of it: deploy_test.py PROGRAM.

The Dockerfile is not built here, which takes the network; its packages are held against what the program loads."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SUFFIXES = ("_bucket", "_sum", "_count")  # of a histogram's series


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def option_names():
    return set(re.findall(r"--([a-z0-9-]+)", output(PROGRAM, "serve", "--help")))


class Deploy(unittest.TestCase):
    def test_the_grafana_dashboard_asks_for_series_that_exist(self):
        defined = set(re.findall(r'"((?:vllm|tinyserve):\w+)"', (ROOT / "src/server/metrics.cc").read_text()))
        dashboard = json.loads((DEPLOY / "grafana.json").read_text())
        asked = {name for panel in dashboard["panels"] for target in panel["targets"]
                 for name in re.findall(r"(?:vllm|tinyserve):\w+", target["expr"])}
        self.assertGreater(len(asked), 10)
        for name in asked:
            family = name
            for suffix in SUFFIXES:
                family = family.removesuffix(suffix)
            self.assertIn(family, defined)
        ids = [panel["id"] for panel in dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))

    def test_the_configuration_is_one_that_the_program_reads(self):
        text = (DEPLOY / "tinyserve.toml").read_text()
        commented = re.sub(r"^# (?=[a-z-]+ = )", "", text, flags=re.M)
        self.assertLessEqual(set(tomllib.loads(commented)), option_names())
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            config.write(text)
            config.flush()
            # Everything but the model is in order.
            done = subprocess.run([PROGRAM, "serve", "--config", config.name, "--port", "0"], capture_output=True,
                                  text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("/etc/tinyserve/model.gguf", done.stderr)

    def test_the_container_starts_the_program_as_no_one_with_what_it_loads(self):
        text = (DEPLOY / "Dockerfile").read_text()
        self.assertRegex(text, r"(?m)^USER (?!root)")
        entry = json.loads(re.search(r"(?m)^ENTRYPOINT (.*)$", text).group(1))
        self.assertEqual(entry[:2], ["tinyserve", "serve"])
        self.assertLessEqual({word[2:] for word in entry if word.startswith("--")}, option_names())
        if shutil.which("dpkg") is None:
            self.skipTest("no dpkg")
        stages = text.split("FROM ")
        for name, path in re.findall(r"(\S+) => (/\S+)", output("ldd", PROGRAM)):
            if not re.match(r"lib(boost|fmt|prometheus|spdlog|tomlplusplus|ssl)", name):
                continue  # of every Debian
            package = output("dpkg", "-S", pathlib.Path(path).resolve()).split(":")[0]
            self.assertIn(package, stages[-1].split(), f"{name} is in {package}")

    def test_systemd_takes_the_unit(self):
        if shutil.which("systemd-analyze") is None:
            self.skipTest("no systemd-analyze")
        unit = (DEPLOY / "tinyserve.service").read_text()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "tinyserve.service"
            # It wants the program to be there.
            path.write_text(unit.replace("/usr/local/bin/tinyserve", str(pathlib.Path(PROGRAM).resolve())))
            done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, [line for line in done.stderr.splitlines() if "tinyserve.service:" in line]),
                         (0, []), done.stderr)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
