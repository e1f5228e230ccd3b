#!/usr/bin/env python3
"""The program `tinyserve` as a person or a script meets it: cli_test.py PROGRAM MODEL [unittest arguments].

MODEL is a tiny random model with a context of at least 512 tokens; with --instruct, a real instruct model."""

import base64
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = MODEL = None
SUBCOMMANDS = ("run", "chat", "serve", "bench", "eval", "tune", "inspect")
DEADLINE_S = 180  # beyond it a step hangs; a busy machine under a sanitizer needs more than a minute for some


def tinyserve(*args, stdin=None):
    """Runs the program to its end, not on a terminal."""
    return subprocess.run([PROGRAM, *args], input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                          capture_output=True, timeout=DEADLINE_S, check=False)


def run_json(*args, **kwargs):
    done = tinyserve("run", "--model", MODEL, "--json", "-", "--seed", "7", *args, **kwargs)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Terminal:
    """The program on a pseudo-terminal: what a person sees and types."""

    def __init__(self, *args):
        pid, self.fd = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(PROGRAM, [PROGRAM, *args])
        self.pid, self.output = pid, ""

    def read_some(self, seconds):
        """-> False once the program has closed the terminal."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.output += data.decode("utf-8", "replace")
        return bool(data)

    def expect(self, pattern, after=0):
        """Waits for a pattern in the output from index `after`, and returns where it ends."""
        end = time.monotonic() + DEADLINE_S
        while True:
            found = re.compile(pattern, re.DOTALL).search(self.output, after)
            if found:
                return found.end()
            if time.monotonic() > end or not self.read_some(1):
                raise AssertionError(f"no {pattern!r} in {self.output[after:]!r}")

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait(self):
        """-> exit status."""
        while self.read_some(5):
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


class CommandLine(unittest.TestCase):
    def test_help_has_an_example(self):
        for command in SUBCOMMANDS:
            done = tinyserve(command, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn(b"Example:\n  tinyserve " + command.encode(), done.stdout)
            self.assertLessEqual(max(map(len, done.stdout.splitlines())), 100)

    def test_version_names_targets(self):
        done = tinyserve("--version")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stdout.decode(),
                         r"tinyserve \d+\.\d+\.\d+\ncompiled targets: .*ref\non this machine: .*ref")

    def test_wrong_command_lines_exit_with_2_and_say_what_to_do(self):
        cases = {
            (): "Usage:",
            ("frobnicate",):
                "there is no subcommand 'frobnicate'; there are run, chat, serve, bench, eval, tune, inspect",
            ("run",): "--model is required",
            ("run", "--model", MODEL, "--prompt", "x", "--temperature", "200"):
                "--temperature: '200' is not allowed: 0 to 100 are",
            ("run", "--model", MODEL, "--prompt", "x", "--kv", "q3"):
                "'q3' is not allowed: f16, f32, bf16, planes, int8, k8v4, int4 are",
            ("run", "--model", MODEL, "--prompt", "x", "--kv", "planes", "--page-tokens", "32"):
                "--page-tokens is 32: the KV type planes has pages of 16 tokens",
            ("run", "--model", MODEL, "--prompt", "x", "--kv", "f16", "--selector", "default"):
                "--selector 'default': the KV cache is stored as f16, and it reads pages in planes only",
            ("run", "--model", MODEL, "--prompt", "x", "--selector", "cascade", "--page-tokens", "64"):
                "--page-tokens is 64: the KV type planes has pages of 16 tokens",
            ("bench", "--model", MODEL, "--selector", "full", "--selector", "cascade@f16"):
                "--selector 'cascade': the KV cache is stored as f16",
            ("eval", "--model", MODEL, "--text", __file__, "--method", "full@q3"):
                "full@q3: kv is 'q3': allowed are f32, f16, bf16, planes, int8, k8v4, int4",
            ("bench", "--model", MODEL, "--kv", "planes", "--page-tokens", "64"): "page-tokens is 64: the KV type",
            ("run", "--model", MODEL, "--prompt", ""): "the prompt is empty",
            ("run", "--model", MODEL, "--prompt", "x", "--logit-bias", "seven:1"):
                "--logit-bias seven:1: write a token id",
            ("run", "--model", MODEL, "--prompt", "x", "--nonsense"): "--nonsense",
            ("run", "--model", MODEL, "--prompt", "x", "--target", "z80"): '--target "z80" is unknown',
            ("run", "--model", MODEL, "--prompt", "x", "--ctx", "99999"): "--ctx is 99999: the model was trained for",
            ("chat", "--model", MODEL, "--ctx", "99999"): "--ctx is 99999: the model was trained for",
            ("eval", "--model", MODEL, "--text", __file__, "--context", "99999"): "--context is 99999: the model",
            ("run", "--model", MODEL, "--prompt", "x", "--logit-bias", "999999:1"):
                "--logit-bias names token 999999: allowed are 0 to",
            ("run", "--model", MODEL, "--prompt", "x", "--logit-bias", "1:101"):
                "--logit-bias is 101: allowed is [-100, 100]",
            ("run", "--model", MODEL, "--prompt", "x", "--stop", ""): "--stop holds a string of 0 bytes: allowed are",
            ("run", "--model", MODEL, "--prompt", "x", "--selector", "boxes"):
                "--selector 'boxes': there is no selector 'boxes'",
            ("bench",): "--model FILE",
            ("eval", "--model", MODEL, "--text", __file__, "--stride", "100000"): "--stride 100000: allowed are 1 to",
            ("eval", "--model", MODEL, "--text", __file__, "--context", "64,128"): "--context: give one value",
            ("eval", "--model", MODEL, "--text", __file__, "--long", "16"): "--long requires --method",
            ("eval", "--model", MODEL, "--text", __file__, "--method", "boxes"): "selector 'boxes': there is no",
            ("eval", "--model", MODEL, "--text", __file__, "--method", "full", "--stride", "8"): "--stride excludes",
            ("eval", "--model", MODEL, "--text", __file__, "--method", "full", "--context", "200"):
                "--context 200: allowed are 257 to ",
            ("eval", "--model", MODEL, "--text", __file__, "--method", "full", "--long", "100000"):
                "--long 100000 after --long-prompt 4096: the model was trained for",
            ("tune", "--model", MODEL, "--text", __file__, "--context", "200"): "--context 200: allowed are 257 to",
            ("tune", "--model", MODEL, "--text", __file__, "--method", "box+early_exit:layer=1"):
                "--method box+early_exit:layer=1: step plugins are not searched",
            ("chat",): "--model is required",
            ("bench", "--model", MODEL, "--selector", "box:ratio=2"): "selector 'box:ratio=2': ratio is '2'",
        }
        for args, message in cases.items():
            done = tinyserve(*args)
            self.assertEqual(done.returncode, 2, (args, done.stderr))
            self.assertIn(message, done.stderr.decode(), args)
            self.assertEqual(done.stdout, b"", args)

    def test_files_that_cannot_be_used_exit_with_1_and_are_named(self):
        with tempfile.NamedTemporaryFile(suffix=".gguf") as no_model:
            no_model.write(b"this is no model")
            no_model.flush()
            for args, message in {
                ("run", "--model", "no/such.gguf", "--prompt", "x"): "no/such.gguf",
                ("run", "--model", no_model.name, "--prompt", "x"): no_model.name,
                ("run", "--model", MODEL, "--file", "no/such.txt"): "no/such.txt",
                ("run", "--config", "no/such.toml", "--prompt", "x"): "no/such.toml",
                ("run", "--model", MODEL, "--prompt", "x", "--ctx", "512", "--kv-memory", "64K"):
                    "65536 are available (--kv-memory)",
                ("run", "--model", MODEL, "--prompt", "x", "--json", "no/such/dir/x.json"): "no/such/dir/x.json",
                ("run", "--model", MODEL, "--prompt", "x", "--trace", "no/such/dir/t.json"): "no/such/dir/t.json",
                ("run", "--model", MODEL, "--prompt", "x", "--trace", "/dev/full"): "/dev/full",
                ("inspect", no_model.name): no_model.name,
                ("inspect", os.path.dirname(no_model.name)): os.path.dirname(no_model.name),
                ("eval", "--model", MODEL, "--text", "no/such.txt"): "no/such.txt",
            }.items():
                done = tinyserve(*args)
                self.assertIn(done.returncode, (1, 2), (args, done.stderr))
                self.assertIn(message, done.stderr.decode(), args)


class Run(unittest.TestCase):
    def test_prompt_file_and_stdin_agree(self):
        text = "The cat sat on the mat, and\nthe dog—too."
        with tempfile.NamedTemporaryFile() as file:
            file.write(text.encode())
            file.flush()
            answers = [run_json("--prompt", text, "-n", "24"), run_json("--file", file.name, "-n", "24"),
                       run_json("-n", "24", stdin=text.encode())]
        for answer in answers[1:]:
            self.assertEqual(answer["text"], answers[0]["text"])
            self.assertEqual(answer["tokens"], answers[0]["tokens"])

    def test_json_holds_the_answer_and_its_cost(self):
        answer = run_json("--prompt", "Hello", "--raw", "-n", "16", "--ignore-eos", "--logprobs", "3", "--stats")
        self.assertEqual(answer["finish"], "length")
        self.assertEqual(len(answer["tokens"]), 16)
        for token in answer["tokens"]:
            self.assertLessEqual(token["logprob"], 0)
            self.assertEqual(len(token["top"]), 3)
            logprobs = [t["logprob"] for t in token["top"]]
            self.assertEqual(logprobs, sorted(logprobs, reverse=True))
            self.assertGreaterEqual(logprobs[0], token["logprob"])
        cost = answer["cost"]
        self.assertEqual(cost["completion_tokens"], 16)
        for key in ("prompt_tokens_per_s", "decode_tokens_per_s", "load_seconds", "first_token_seconds",
                    "peak_resident_bytes", "kv_bytes", "bytes_per_token", "bandwidth_bytes_per_s", "bandwidth_share"):
            self.assertGreater(cost[key], 0, key)
        self.assertLessEqual(cost["bandwidth_share"], 1.1)

    def test_plain_output_is_the_text_alone_and_figures_go_to_stderr(self):
        args = ("--prompt", "Hello", "-n", "16", "--seed", "7")
        done = tinyserve("run", "--model", MODEL, *args)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout.decode(), run_json(*args[:4])["text"] + "\n")
        for figure in (r"prompt  \d+ tokens, [\d.]+ tokens/s; first token after [\d.]+ s \(loaded in [\d.]+ s\)",
                       r"answer  \d+ tokens", r"memory  peak [\d.]+ MiB; KV cache", r"reads   [\d.]+ [KMG]iB a token"):
            self.assertRegex(done.stderr.decode(), figure)
        self.assertNotIn(b"\x1b", done.stderr)
        self.assertNotIn(b"\r", done.stderr)
        self.assertEqual(tinyserve("run", "--model", MODEL, *args, "--quiet").stderr, b"")

    def test_sampling_options_reach_the_sampler(self):
        plain = run_json("--prompt", "Hello", "--raw", "-n", "8", "--temperature", "0", "--ignore-eos")
        first = plain["tokens"][0]["id"]
        banned = run_json("--prompt", "Hello", "--raw", "-n", "8", "--temperature", "0", "--ignore-eos",
                          "--logit-bias", f"{first}:-100")
        self.assertNotIn(first, [t["id"] for t in banned["tokens"]])
        hot = ["--prompt", "Hello", "--raw", "-n", "16", "--temperature", "2", "--top-p", "1", "--ignore-eos"]
        self.assertEqual(run_json(*hot)["text"], run_json(*hot, "--threads", "1")["text"])
        other = json.loads(tinyserve("run", "--model", MODEL, "--json", "-", "--seed", "8", *hot).stdout)
        self.assertNotEqual(run_json(*hot)["text"], other["text"])

    def test_a_stop_string_ends_the_answer_before_it(self):
        args = ("--prompt", "Hello", "--raw", "-n", "64", "--temperature", "0", "--ignore-eos")
        text = run_json(*args)["text"]
        stop = text[len(text) // 2:][:3]
        stopped = run_json(*args, "--stop", stop)
        self.assertEqual(stopped["finish"], "stop")
        self.assertEqual(stopped["text"], text[:text.index(stop)])

    def test_what_does_not_fit_the_context_is_said(self):
        done = tinyserve("run", "--model", MODEL, "--prompt", "x " * 600, "--ctx", "256")
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr.decode(), r"the prompt has \d+ tokens: the context holds 256.*raise --ctx")
        done = tinyserve("run", "--model", MODEL, "--prompt", "x", "--ctx", "128", "--ignore-eos", "-n", "200")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stderr.decode(), r"the context of 128 tokens leaves \d+ for the answer")

    def test_ctrl_c_stops_cleanly(self):
        # The tiny model may be through before the signal comes; then it is tried again.
        for _ in range(10):
            with subprocess.Popen([PROGRAM, "run", "--model", MODEL, "--prompt", "Hello", "--ignore-eos", "-n", "900",
                                   "--threads", "1", "--compute", "f32"], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as process:
                process.stdout.read(1)
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=DEADLINE_S)
            if process.returncode != 0:
                break
        self.assertEqual(process.returncode, 130)
        self.assertRegex(stderr.decode(), r"answer  \d+ tokens")

    def test_on_a_terminal_the_bar_is_gone_and_the_bandwidth_is_told(self):
        terminal = Terminal("run", "--model", MODEL, "--prompt", "Hello", "-n", "8", "--ignore-eos", "--threads", "1")
        terminal.expect("of the [\\d.]+ GB/s that this machine reads")
        self.assertEqual(terminal.wait(), 0)
        # Escape codes of the program itself wipe a line and nothing else.
        self.assertEqual(set(re.findall("\x1b[^a-zA-Z]*[a-zA-Z]", terminal.output)) - {"\x1b[K"}, set())


class Chat(unittest.TestCase):
    def start(self, *args):
        terminal = Terminal("chat", "--model", MODEL, "-n", "8", *args)
        return terminal, terminal.expect("/help lists the commands.*\r\n\r\n> ")

    def test_answers_commands_and_leaves(self):
        terminal, at = self.start()
        terminal.type("Hello\n")
        at = terminal.expect("\r\n> ", at)
        for command, reply in (("/help", "/reset"), ("/stats", "1 turns, "), ("/frob", "/frob is no command"),
                               ("/reset", "The conversation is forgotten"), ("/stats", "0 turns, ")):
            terminal.type(command + "\n")
            at = terminal.expect(re.escape(reply), at)
            at = terminal.expect("\r\n> ", at)
        terminal.type("/quit\n")
        self.assertEqual(terminal.wait(), 0)

    def test_end_of_input_leaves(self):
        terminal, _ = self.start()
        terminal.type("\x04")
        self.assertEqual(terminal.wait(), 0)

    def test_ctrl_c_at_the_prompt_warns_and_then_leaves(self):
        terminal, at = self.start()
        terminal.type("half a line\x03")
        at = terminal.expect("Ctrl-C once more.*\r\n> ", at)
        terminal.type("Hello\n")  # anything else takes the warning back
        at = terminal.expect("\r\n> ", at)
        terminal.type("\x03")
        at = terminal.expect("Ctrl-C once more.*\r\n> ", at)
        terminal.type("\x03")
        self.assertEqual(terminal.wait(), 0)

    def test_a_message_of_several_lines(self):
        terminal, at = self.start()
        terminal.type('"""\nfirst\n/quit\n"""\n')
        at = terminal.expect("\r\n> ", terminal.output.rfind("> "))
        terminal.type("/stats\n")
        terminal.expect("1 turns, ", at)
        terminal.type("/quit\n")
        self.assertEqual(terminal.wait(), 0)

    def test_a_chat_remembers_until_it_is_reset(self):
        done = tinyserve("chat", "--model", MODEL, "-n", "8", "--ignore-eos", "--seed", "7",
                         stdin=b"Hello\n/stats\nHello\n/stats\n/reset\nHello\n/stats\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        first, second, after_reset = map(int, re.findall(r"prompt  (\d+) tokens", done.stderr.decode())[:3])
        self.assertGreaterEqual(second, 2 * first - 16)  # both questions, and the answer to the first
        self.assertGreater(second, first + 8)
        self.assertEqual(after_reset, first)

    def test_a_conversation_that_outgrows_the_context_is_said(self):
        message = ("word " * 8).encode() + b"\n"
        done = tinyserve("chat", "--model", MODEL, "-n", "8", "--ctx", "224", "--ignore-eos", stdin=message * 6)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr.decode(), r"\[The context is full: the \d oldest of \d turns (is|are) forgotten")
        done = tinyserve("chat", "--model", MODEL, "-n", "8", "--ctx", "224", "--ignore-eos", "--on-full", "refuse",
                         stdin=message * 6)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr.decode(), r"Not sent: this would make a prompt of \d+ tokens")
        self.assertNotIn(b"forgotten", done.stderr)


class Measure(unittest.TestCase):
    def lines(self, done):
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_bench_prints_a_line_a_case_and_says_what_it_skips(self):
        with tempfile.NamedTemporaryFile() as file:
            done = tinyserve("bench", "--model", MODEL, "--prefill", "16,64,100000", "--decode", "4", "--depth",
                             "0,40", "--batch", "1,3", "--repeat", "2", "--json", file.name)
            self.assertEqual(done.returncode, 0, done.stderr)
            cases = [json.loads(line) for line in file]
        self.assertRegex(done.stdout.decode(), r"decode +4 +40 +3 +[\d.]+ +\([\d.]+ - [\d.]+\)")
        targets = tinyserve("--version").stdout.decode()
        self.assertEqual({(c["kind"], c["tokens"], c["depth"], c["batch"]) for c in cases},
                         {("prefill", n, d, 1) for n in (16, 64) for d in (0, 40)} |
                         {("decode", 4, d, b) for d in (0, 40) for b in (1, 3)})
        for case in cases:
            self.assertEqual(case["engine"], "tinyserve")
            self.assertIn(case["target"], targets)
            rate = case["tokens_per_s"]
            self.assertTrue(0 < rate["min"] <= rate["median"] <= rate["max"], case)
            self.assertGreater(case["bytes_per_step"], 0)
            self.assertGreater(case["roofline_share"], 0)
            self.assertGreater(case["bandwidth_share"], 0)
        deep, shallow = ([c["bytes_per_step"] for c in cases if (c["kind"], c["batch"], c["depth"]) == ("decode", 3, d)]
                         for d in (40, 0))
        self.assertGreater(deep[0], shallow[0])
        skipped = [json.loads(line) for line in done.stderr.splitlines()]
        self.assertEqual({s["skipped"]["depth"] for s in skipped}, {0, 40})
        self.assertTrue(all(s["skipped"]["tokens"] == 100000 and s["reason"] for s in skipped))

    def test_bench_compares_selectors_over_a_text(self):
        sparse = "box:ratio=0.25,min_tokens=0,min_context=0,dense_layers=0"
        args = ("bench", "--model", MODEL, "--prefill", "16", "--decode", "4", "--depth", "256,320", "--batch", "1,3",
                "--repeat", "2", "--selector", "full", "--selector", sparse, "--no-peaks", "--json", "-")
        done = tinyserve(*args, "--text", __file__)
        cases = self.lines(done)
        self.assertEqual(done.stderr, b"")
        self.assertEqual({(c["kind"], c["depth"], c["batch"], c["selector"]) for c in cases},
                         {("prefill", d, 1, "full") for d in (256, 320)} |
                         {("decode", d, b, s) for d in (256, 320) for b in (1, 3) for s in ("full", sparse)})
        decodes = [c for c in cases if c["kind"] == "decode"]
        for full, box in zip(decodes[::2], decodes[1::2]):
            self.assertEqual((full["resolved"], full["speedup_over_full"]), ("full", 1))
            self.assertEqual((full["bandwidth_share"], full["roofline_share"]), (None, None))  # --no-peaks
            self.assertTrue(box["resolved"].startswith("box:ratio=0.25,"), box)
            self.assertGreater(box["speedup_over_full"], 0)
            self.assertLess(box["bytes_per_step"], full["bytes_per_step"])
            self.assertEqual(box["text"], __file__)
        done = tinyserve(*args)
        self.assertIn(b"random tokens", done.stderr)
        self.assertTrue(all(c["text"] is None for c in self.lines(done)))

    def test_coded_pages_are_measured_like_raw_ones(self):
        # Depths within windows and at their ends, taken up again in the second round.
        def bench(kv, *text):
            args = ("--prefill", "80", "--decode", "70", "--depth", "0,40,100,320", "--batch", "1,3", "--repeat", "2")
            cases = self.lines(tinyserve("bench", "--model", MODEL, *args, "--kv", kv, *text, "--no-peaks", "--json"))
            return {(c["kind"], c["depth"], c["batch"]): c["bytes_per_step"] for c in cases}
        raw, coded = bench("f16"), bench("planes")
        self.assertEqual(raw.keys(), coded.keys())
        self.assertLess(coded["decode", 320, 3], raw["decode", 320, 3])
        self.assertEqual(bench("planes", "--text", __file__), coded)
        method = ("eval", "--model", MODEL, "--text", __file__, "--context", "300", "--score", "40", "--tokens", "40",
                  "--method", "full", "--json", "-")
        raw, coded = (self.lines(tinyserve(*method, "--kv", kv))[0] for kv in ("f16", "planes"))
        self.assertEqual([coded["kl"], coded["top1"], raw["kv_fraction_read"]], [0, 1, 1])
        self.assertLess(coded["kv_fraction_read"], 0.85)
        self.assertAlmostEqual(coded["dense_perplexity"] / raw["dense_perplexity"], 1, delta=0.02)

    def test_methods_over_different_storages_are_compared_in_one_run(self):
        cascade = ("cascade:ratio=0.5,min_tokens=0,min_context=0,wide_layers=0,"
                   "full=0.1,min_full=8,values=0.3,min_values=16")
        full = "cascade:ratio=1,min_context=0,full=1,values=1,least_share=0"  # everything is read
        preset_spec = "default:min_context=1024"
        selectors = ("full", cascade, "full@planes", preset_spec)
        args = ("bench", "--model", MODEL, "--prefill", "16", "--decode", "70", "--depth", "100,320", "--batch", "1,3",
                "--repeat", "2", "--text", __file__, "--no-peaks", *(a for s in selectors for a in ("--selector", s)))
        cases = self.lines(tinyserve(*args, "--json", "-"))
        self.assertEqual([c["kv"] for c in cases if c["kind"] == "prefill"], ["f16"] * 2)
        decodes = [c for c in cases if c["kind"] == "decode"]
        for raw, sparse, coded, preset in (decodes[i:i + 4] for i in range(0, len(decodes), 4)):
            self.assertEqual([c["selector"] for c in (raw, sparse, coded, preset)], list(selectors))
            self.assertEqual([c["kv"] for c in (raw, sparse, coded, preset)], ["f16", "planes", "planes", "planes"])
            self.assertEqual([raw["speedup_over_full"], coded["resolved"]], [1, "full"])
            self.assertTrue(preset["resolved"].startswith("cascade:ratio="), preset)
            if raw["depth"] == 320:  # fewer tokens are as cheap to read whole
                self.assertLess(sparse["bytes_per_step"], coded["bytes_per_step"])
            self.assertLess(coded["bytes_per_step"], raw["bytes_per_step"])
            self.assertEqual(preset["bytes_per_step"], coded["bytes_per_step"])  # the context is short
            for case in (sparse, coded, preset):
                self.assertGreater(case["speedup_over_full"], 0)
        shown = tinyserve(*args).stdout.decode()
        self.assertIn("f16 and planes keys and values", shown)
        self.assertRegex(shown, r"\n" + preset_spec + r" is cascade:ratio=.* over planes\n")
        methods = ("box:min_context=0", "full", cascade, "full@planes", preset_spec, full)
        args = ("eval", "--model", MODEL, "--text", __file__, "--context", "300", "--score", "80", "--tokens", "80",
                *(a for m in methods for a in ("--method", m)), "--json")
        raw, *coded = self.lines(tinyserve(*args))[1:]
        sparse, dense, preset, covering = coded
        self.assertEqual([raw["kv"], raw["kl"], raw["kv_fraction_held"], raw["kv_fraction_read"]], ["f16", 0, 1, 1])
        for line in coded:
            self.assertEqual((line["kv"], line["base_kv"], line["kv_bytes"]), ("planes", "f16", dense["kv_bytes"]))
            self.assertGreater(line["kl"], 0)
            self.assertGreater(line["speedup"], 0)
        self.assertLess(dense["kv_bytes"], raw["kv_bytes"])
        self.assertEqual([preset[k] for k in ("kl", "kv_bytes_read_per_token")],
                         [dense[k] for k in ("kl", "kv_bytes_read_per_token")])
        self.assertLess(sparse["kv_bytes_read_per_token"], dense["kv_bytes_read_per_token"])
        self.assertLess(abs(covering["kl"] - dense["kl"]), 0.3 * dense["kl"])
        self.assertLess(2 * dense["kl"], sparse["kl"])

    def test_the_storage_of_run_follows_its_selector(self):
        prompt = ("--prompt", "x " * 150, "-n", "40", "--ignore-eos")
        def run(*args):
            answer = run_json(*prompt, *args)
            return answer["cost"]["kv_bytes"], answer["text"]
        coded = run("--selector", "cascade")
        self.assertLess(coded[0], run()[0])
        self.assertEqual(run("--selector", "default"), coded)
        self.assertEqual(run("--selector", "cascade", "--kv", "planes"), coded)

    def test_eval_holds_methods_against_dense_attention(self):
        methods = ("full", *(f"{name}:ratio=0.25,min_tokens=0,min_context=0,dense_layers=0"
                             for name in ("oracle", "random", "box")))
        with tempfile.TemporaryDirectory() as folder:
            plot, table = os.path.join(folder, "p.svg"), os.path.join(folder, "table.json")
            args = ("eval", "--model", MODEL, "--text", __file__, "--context", "256,320", "--score", "40", "--tokens",
                    "80", "--long", "80", "--long-prompt", "200", *(a for m in methods for a in ("--method", m)))
            lines = self.lines(tinyserve(*args, "--plot", plot, "--json", "-"))
            shown = tinyserve(*args[:-4], "--json", table).stdout.decode()
            with open(plot, encoding="utf-8") as file:
                self.assertEqual(file.read().count("<circle"), 2 * len(lines))
            with open(table, encoding="utf-8") as file:
                self.assertEqual(len(file.readlines()), 3 * (len(methods) - 2))
        self.assertRegex(shown, r"full +f16 +256 +80 +0 +0 +1\.0000 ")
        self.assertEqual([(line["context"], line["method"]) for line in lines],
                         [(c, m) for c in (256, 320, 280) for m in methods])
        for full, oracle, random, box in (lines[i:i + 4] for i in range(0, len(lines), 4)):
            self.assertEqual([full[k] for k in ("resolved", "kl", "kl_p99", "top1", "dppl", "kv_fraction_read")],
                             ["full", 0, 0, 1, 0, 1])
            self.assertLess(0, oracle["kl"])
            self.assertLess(oracle["kl"], random["kl"])
            self.assertGreater(random["kl_p99"], random["kl"])
            self.assertLess(random["top1"], 1)
            self.assertGreater(random["dppl_se"], 0)
            self.assertEqual(random["kv_bytes"], full["kv_bytes"])
            self.assertGreater(box["kv_bytes"], full["kv_bytes"])  # what it keeps of pages
            self.assertLess(box["kv_bytes_read_per_token"], 0.5 * full["kv_bytes_read_per_token"])
            for line in (full, oracle, random, box):
                self.assertEqual(line["scored_tokens"], 80)
                self.assertEqual(line["selector_failures"], 0)
                self.assertGreater(line["decode_tokens_per_s"], 0)
                self.assertEqual(line["kind"], "long_decode" if line["context"] == 280 else "method")
        drift = lines[-1]["kl_by_position"]
        self.assertEqual(len(drift), 1)
        self.assertAlmostEqual(drift[0], lines[-1]["kl"], places=5)

    def test_tune_writes_the_fastest_setting_within_the_ceiling(self):
        sparse = "random:ratio=0.2,min_tokens=0,min_context=0"
        args = ("tune", "--model", MODEL, "--text", __file__, "--context", "300", "--score", "40", "--tokens", "120",
                "--method", "full", "--method", sparse, "--method", "full@planes")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "tuned.toml")
            *settings, tuned = self.lines(tinyserve(*args, "--kl", "0.0001", "--output", path, "--json", "-"))
            self.assertEqual([s["method"] for s in settings], ["full", sparse, "full@planes"])
            self.assertEqual([(s["kl"], s["within"]) for s in settings[:1]], [(0, True)])
            self.assertGreater(settings[1]["kl"], 0.0001)
            self.assertEqual((settings[1]["within"], settings[1]["tokens_per_s"]), (False, None))
            within = [s for s in settings if s["within"]]
            self.assertEqual(tuned["method"], max(within, key=lambda s: s["tokens_per_s"])["method"])
            self.assertNotEqual(tuned["tuned_on"]["text"], tuned["measured_on"]["text"])
            for figures in (tuned["tuned_on"], tuned["measured_on"]):
                self.assertGreater(figures["tokens_per_s"], 0)
                self.assertGreaterEqual(figures["scored_tokens"], 80)
            done = tinyserve(*args, "--output", path)
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"--output: {path} exists", done.stderr.decode())
            wide = os.path.join(folder, "wide.toml")
            done = tinyserve(*args[:-6], "--method", sparse, "--kl", "50", "--output", wide)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertRegex(done.stdout.decode(), r"chosen +random:ratio=0\.2.*\nmeasured on the second half of ")
            with open(wide, encoding="utf-8") as file:
                self.assertRegex(file.read(), r"(# .*\n)+selector = [\"']random:ratio=0\.2,min_tokens=0,min_context=0")
            prompt = ("--prompt", "x " * 150, "-n", "20", "--ignore-eos", "--temperature", "0")
            self.assertEqual(run_json("--config", wide, *prompt)["tokens"],
                             run_json("--selector", sparse, *prompt)["tokens"])
            case, = self.lines(tinyserve("bench", "--config", wide, "--model", MODEL, "--prefill", "0", "--decode", "4",
                                         "--depth", "300", "--repeat", "1", "--text", __file__, "--no-peaks", "--json"))
            self.assertEqual(case["selector"], sparse)
        done = tinyserve(*args[:-6], "--method", sparse, "--kl", "0", "--output", os.path.join(folder, "no.toml"))
        self.assertEqual(done.returncode, 2)
        self.assertIn("--kl 0: no setting keeps to it", done.stderr.decode())

    def test_eval_agrees_whatever_the_window_may_see_of_it(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"It was the best of times, it was the worst of times. " * 12)
            file.flush()
            whole, = self.lines(tinyserve("eval", "--model", MODEL, "--text", file.name, "--compute", "f32", "--json"))
            parts, = self.lines(tinyserve("eval", "--model", MODEL, "--text", file.name, "--compute", "f32", "--json",
                                          "--context", "64", "--stride", "16"))
            fast, = self.lines(tinyserve("eval", "--model", MODEL, "--text", file.name, "--json", "--tokens", "100"))
        self.assertEqual(whole["tokens"], parts["tokens"])
        self.assertEqual(fast["tokens"], 99)
        self.assertGreater(parts["windows"], whole["windows"])
        for result in (whole, parts, fast):
            self.assertGreater(result["perplexity"], 1)
            self.assertAlmostEqual(math.log(result["perplexity"]), result["nll_mean"], places=6)

    def test_inspect(self):
        report, = self.lines(tinyserve("inspect", MODEL, "--tensors", "--json", "-"))
        self.assertTrue(report["supported"])
        self.assertEqual(sum(t["bytes"] for t in report["tensors"]), report["tensor_bytes"])
        self.assertEqual(sum(t["bytes"] for t in report["types"]), report["tensor_bytes"])
        self.assertGreater(report["memory"]["kv_f16_bytes_per_1k"], 0)
        done = tinyserve("inspect", MODEL)
        for word in ("architecture", "parameters", "tokenizer", "KV cache"):
            self.assertIn(word, done.stdout.decode())


SPARSE = "moments:ratio=0.25,min_tokens=0,min_context=0"
CASCADE = "cascade:ratio=0.5,min_tokens=0,min_context=0,wide_layers=0,full=0.1,min_full=8,values=0.3,min_values=16"


class Observation(unittest.TestCase):
    """What the program tells of selection."""

    def test_layers_add_up(self):
        def check(layers, queries, timed):
            self.assertGreater(len(layers), 1)
            self.assertEqual(len({(l["layer"], l["kv_head"]) for l in layers}), len(layers))
            for layer in layers:
                self.assertEqual(layer["queries"], queries)
                self.assertLessEqual(layer["pages_selected"], layer["pages_held"])
                self.assertLessEqual(layer["pages_reused"], layer["pages_followed"])
                self.assertGreater(layer["bytes_avoided"], 0)
                self.assertTrue(all((layer[key] > 0) == (key in timed)
                                    for key in ("score_seconds", "select_seconds", "attend_seconds")))
        everything = ("score_seconds", "select_seconds", "attend_seconds")
        answer = ("--prompt", "x " * 150, "-n", "10", "--ignore-eos", "--layers")
        check(run_json(*answer, "--selector", SPARSE)["layers"], 9, everything)
        check(run_json(*answer, "--selector", CASCADE)["layers"], 9, everything[2:])
        shown = tinyserve("run", "--model", MODEL, *answer, "--selector", SPARSE).stderr.decode()
        self.assertRegex(shown, r"\n  all +\d+ ")
        text = ("--text", __file__, "--layers", "--json", "-")
        done = tinyserve("bench", "--model", MODEL, "--prefill", "0", "--decode", "4", "--depth", "256", "--batch", "3",
                         "--repeat", "1", "--no-peaks", "--selector", "full", "--selector", SPARSE, *text)
        full, sparse = map(json.loads, done.stdout.splitlines())
        self.assertEqual(full["layers"], [])
        check(sparse["layers"], 12, everything)
        done = tinyserve("eval", "--model", MODEL, "--context", "300", "--score", "40", "--tokens", "80",
                         "--method", "full", "--method", CASCADE, *text)
        full, sparse = map(json.loads, done.stdout.splitlines())
        self.assertEqual([full["layers"], full["hit_rate"]], [[], None])
        self.assertEqual(full["shadow"]["checks"], 0)
        shadow = sparse["shadow"]
        self.assertGreater(shadow["checks"], 0)
        for figure in (shadow["missed_mass"], shadow["output_error"]):
            self.assertTrue(0 < figure["mean"] <= figure["p99"] * 1.001 <= figure["max"] * 1.002, shadow)
        check(sparse["layers"], 80, everything[2:])
        hits = [sum(layer[key] for layer in sparse["layers"]) for key in ("pages_reused", "pages_followed")]
        self.assertAlmostEqual(sparse["hit_rate"], hits[0] / hits[1], delta=1e-4)

    def test_retrieval_tasks_are_asked_of_every_method(self):
        text = os.path.join(os.path.dirname(os.path.abspath(MODEL)), "..", "moby_dick.txt")
        args = ("eval", "--model", MODEL, "--text", text, "--score", "200", "--trials", "1", "--method", "full",
                "--method", SPARSE)
        done = tinyserve(*args, "--context", "420", "--task", "key_value", "--task", "passkey", "--json", "-")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([(x["task"], x["method"], x["depth"]) for x in lines],
                         [(task, method, depth) for task in ("key_value", "passkey") for method in ("full", SPARSE)
                          for depth in (0.1, 0.3, 0.5, 0.7, 0.9)])
        for line in lines:
            self.assertEqual(line["answers"], 1)
            self.assertLess(line["logprob"], 0)
            if line["method"] == "full":  # dense attention itself
                self.assertEqual((line["accuracy"], line["logprob"]), (line["dense_accuracy"], line["dense_logprob"]))
            else:
                self.assertNotEqual(line["logprob"], line["dense_logprob"])
        for more, message in ((["--context", "420", "--task", "needle"], "'needle' is not allowed: passkey, key_value"),
                              (["--context", "240", "--task", "passkey"], "--context 240: allowed are 265 to"),
                              (["--task", "passkey", "--layers"], "--task excludes --layers")):
            done = tinyserve(*args, *more)
            self.assertEqual(done.returncode, 2, done.stdout)
            self.assertIn(message, done.stderr.decode())

    def test_the_picture_of_pages_read_holds_what_was_counted(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "reads.html")
            for selector, least in ((SPARSE, 0.2), (CASCADE, 0.45), ("full", 1)):
                done = tinyserve("inspect", MODEL, "--attention", "--file", self.text_file(folder), "-n",
                                 "12", "--selector", selector, "--output", path, "--json", "-")
                self.assertEqual(done.returncode, 0, done.stderr)
                figures = json.loads(done.stdout)
                with open(path, encoding="utf-8") as file:
                    page = file.read()
                self.assertNotIn("://", page)  # nothing from elsewhere
                data = json.loads(page.split('id="data">')[1].split("</script>")[0])
                self.assertEqual({**figures, "pages": data["pages"], "reads": data["reads"]}, data)
                bits, row = base64.b64decode(data["reads"]), (data["pages"] + 7) // 8
                layers, heads = len(data["layers"]), data["kv_heads"]
                self.assertEqual(len(bits), len(data["steps"]) * layers * heads * row)
                reused = followed = 0
                for layer in range(layers):
                    held = read = 0
                    for head in range(heads):
                        before = None
                        for step, about in enumerate(data["steps"]):
                            at = ((step * layers + layer) * heads + head) * row
                            now = {p for p in range(row * 8) if bits[at + p // 8] >> p % 8 & 1}
                            self.assertTrue(now <= set(range(about["pages"])))
                            self.assertIn(about["pages"] - 1, now)  # the query's own page
                            if before is not None:
                                followed, reused = followed + len(now), reused + len(now & before)
                            before, held, read = now, held + about["pages"], read + len(now)
                    self.assertAlmostEqual(data["layers"][layer]["share_read"], read / held, delta=1e-4)
                    self.assertTrue(least <= read / held <= least + 0.35, (selector, read / held))
                if selector == SPARSE:
                    self.assertAlmostEqual(data["hit_rate"], reused / followed, delta=1e-4)
                if selector == "full":
                    self.assertIsNone(data["hit_rate"])
            done = tinyserve("inspect", MODEL, "--attention")
            self.assertEqual(done.returncode, 2)
            self.assertIn("--attention needs a text: --prompt TEXT or --file FILE", done.stderr.decode())
            done = tinyserve("inspect", MODEL, "--attention", "-p", "x", "--output", "no/such/dir/x.html")
            self.assertIn("--output: cannot write no/such/dir/x.html", done.stderr.decode())

    @staticmethod
    def text_file(folder):
        path = os.path.join(folder, "text.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write("A ship </script> and <b>a whale</b>. " * 12)
        return path

    def test_traces_hold_every_step_of_every_command(self):
        text = __file__
        commands = {
            "run": ["--prompt", "x", "-n", "8", "--ignore-eos"],
            "chat": ["-n", "4"],
            "bench": ["--depth", "16", "--prefill", "0", "--decode", "4", "--repeat", "1", "--no-peaks"],
            "eval": ["--text", text, "--context", "64", "--tokens", "64"],
            "eval --method": ["--text", text, "--context", "64", "--score", "32", "--tokens", "64",
                              "--method", "streaming:min_context=0"],
        }
        for command, args in commands.items():
            with self.subTest(command), tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "trace.json")
                if command == "eval --method":
                    args = args[-2:] + args[:-2]
                done = tinyserve(command.split()[0], "--model", MODEL, "--trace", path, *args, stdin=b"Hello\n")
                self.assertEqual(done.returncode, 0, done.stderr)
                with open(path, encoding="ascii") as file:
                    events = json.load(file)
                spans = [e for e in events if e["ph"] == "X"]
                self.assertIn(f"trace: {events[-1]['args']['records']} records in {path}", done.stderr.decode())
                self.assertEqual(events[-1]["args"]["dropped"], 0)
                steps = [e for e in spans if e["name"] == "step"]
                layers = {e["args"]["layer"] for e in spans if e["name"] == "attention"}
                self.assertEqual(sum(e["name"] == "attention" for e in spans), len(steps) * len(layers))
                ends = []  # of the spans that are open: each ends within the one around it
                for span in sorted(spans, key=lambda e: (e["ts"], -e["dur"])):
                    while ends and ends[-1] <= span["ts"]:
                        ends.pop()
                    ends.append(span["ts"] + span["dur"])
                    self.assertLessEqual(ends[-1], ends[0] + 1e-6)
                if command == "run":
                    self.assertEqual(sum(e["args"]["generated_tokens"] for e in steps), 7)
                    life = [e["name"] for e in events if e["ph"] == "b"]
                    self.assertEqual(life, ["request 1", "queued", "prefill", "decode"])
                if command == "eval --method":
                    self.assertIn("streaming:min_context=0", {e["name"] for e in spans})


@unittest.skipUnless("--instruct" in sys.argv, "needs a real instruct model")
class Instruct(unittest.TestCase):
    def test_it_answers(self):
        answer = run_json("--prompt", "What is 2 + 2?", "--temperature", "0", "-n", "60")
        self.assertIn("4", answer["text"])
        self.assertEqual(answer["finish"], "stop")

    def test_ctrl_c_stops_an_answer_and_not_the_chat(self):
        terminal = Terminal("chat", "--model", MODEL, "-n", "2000", "--ignore-eos")
        at = terminal.expect("\r\n> ")
        terminal.type("Tell me a very long story.\n")
        at = terminal.expect("[a-z]{3}", terminal.expect("story\\.\r\n", at))
        terminal.type("\x03")
        at = terminal.expect("\\[Stopped\\.", at)
        at = terminal.expect("\r\n> ", at)
        terminal.type("/reset\n")
        at = terminal.expect("\r\n> ", at)
        terminal.type("/quit\n")
        self.assertEqual(terminal.wait(), 0)

    def test_memory_stays_within_the_promise(self):
        report = json.loads(tinyserve("inspect", MODEL, "--json").stdout)
        cost = run_json("--prompt", "Hello", "-n", "32")["cost"]
        self.assertLessEqual(cost["peak_resident_bytes"], report["tensor_bytes"] + cost["kv_bytes"] + (64 << 20))


if __name__ == "__main__":
    PROGRAM, MODEL = sys.argv[1:3]
    if not os.path.exists(MODEL):
        print(f"{MODEL} is not there: scripts/fetch_model.py fetches it")
        sys.exit(77)  # ctest: skipped
    unittest.main(argv=[sys.argv[0], *(a for a in sys.argv[3:] if a != "--instruct")])
