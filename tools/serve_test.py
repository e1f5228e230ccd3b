#!/usr/bin/env python3
"""`tinyserve serve` as clients meet it, hostile ones too: serve_test.py PROGRAM MODEL SLOW_STEP [unittest arguments].

MODEL is a tiny random model, SLOW_STEP the step plugin of tests/support/slow_step.cc; only Python's standard library
talks to the server."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings

PROGRAM = MODEL = SLOW_STEP = None
DEADLINE_S = 180  # beyond it a step hangs; a busy machine under a sanitizer needs more than a minute for some


class Server:
    """The program on a free port, ended by its owner."""

    def __init__(self, *args, env=None):
        self.log = tempfile.NamedTemporaryFile()
        self.process = subprocess.Popen([PROGRAM, "serve", "--model", MODEL, "--port", "0",
                                         *(["--plugin", SLOW_STEP] if SLOW_STEP else []), *args],
                                        stdout=subprocess.PIPE, stderr=self.log, env={**os.environ, **(env or {})})
        self.greeting = ""
        while "try " not in self.greeting:
            line = self.process.stdout.readline().decode()
            assert line, self.errors()
            self.greeting += line
        self.port = int(re.search(r"https?://127\.0\.0\.1:(\d+)", self.greeting).group(1))

    def errors(self):
        with open(self.log.name, encoding="utf-8") as log:
            return log.read()

    def connect(self, source="127.0.0.1"):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S, source_address=(source, 0))

    def ask(self, method, path, body=None, headers=None):
        """-> (status, parsed JSON or text, headers)"""
        connection = self.connect()
        if isinstance(body, dict):
            body = json.dumps(body)
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        is_json = reply.headers.get("Content-Type") == "application/json"
        return reply.status, json.loads(text) if is_json and text else text, reply.headers

    def post(self, path, **fields):
        return self.ask("POST", path, fields)

    def raw(self, data):
        """Sends bytes -> all that comes back until the server closes."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S) as s:
            try:
                s.sendall(data)
            except ConnectionError:
                pass  # it was refused before it was read; the reply says why
            try:
                while part := s.recv(65536):
                    received += part
            except ConnectionError:
                pass
        return received

    def metric(self, name, label=""):
        text = self.ask("GET", "/metrics")[1]
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if (line.startswith(name + "{") or line.startswith(name + " ")) and label in line)

    def wait_until(self, condition, what):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"{what}: {self.errors()[-2000:]}"
            time.sleep(0.02)

    def stop(self, sig=signal.SIGTERM):
        """-> exit status"""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        status = self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        self.log.close()
        return status


def events_of(reply):
    """The data of a stream's events, as they come."""
    for line in reply:
        line = line.decode().rstrip("\n")
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


# Two seconds at least for the tiny model, which alone would be done before anybody can ask whether it runs.
SLOW = {"step_plugins": ["slow:ms=5"]}
LONG = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True, "tinyserve": SLOW}


class Serve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--header-bytes", "4096", "--body-bytes", "65536", "--header-seconds", "1",
                            "--body-seconds", "1", "--idle-seconds", "2", "--connections", "24", "--queue", "8",
                            "--sequences", "4")

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        assert status == 0, status

    def test_no_prompt_is_logged(self):
        self.server.post("/v1/completions", prompt="Remember swordfish", max_tokens=1)
        self.server.post("/v1/completions", prompt="swordfish", nonsense="swordfish")
        self.server.ask("GET", "/swordfish?swordfish")
        self.server.wait_until(lambda: "(unknown, 10 bytes) status=404" in self.server.errors(), "it is logged")
        self.assertNotIn("swordfish", self.server.errors())

    def test_the_curl_line_of_the_greeting_works(self):
        found = re.search(r"curl (http://\S+) .*-d '(.*)'", self.server.greeting)
        path = found.group(1).split(str(self.server.port))[1]
        status, reply, _ = self.server.ask("POST", path, found.group(2))
        self.assertEqual(status, 200, reply)
        self.assertTrue(reply["choices"])

    def test_a_stream_says_what_the_whole_says(self):
        request = {"prompt": "Hello", "max_tokens": 24, "seed": 3, "ignore_eos": True, "logprobs": 2}
        whole = self.server.post("/v1/completions", **request)[1]
        connection = self.server.connect()
        connection.request("POST", "/v1/completions", json.dumps({**request, "stream": True,
                                                                  "stream_options": {"include_usage": True}}))
        reply = connection.getresponse()
        self.assertEqual(reply.headers["Content-Type"], "text/event-stream")
        events = list(events_of(reply))
        self.assertEqual(events[-1], "[DONE]")
        chunks = [json.loads(e) for e in events[:-1]]
        choices = [c["choices"][0] for c in chunks if c["choices"]]
        self.assertEqual("".join(c["text"] for c in choices), whole["choices"][0]["text"])
        self.assertEqual([c["finish_reason"] for c in choices if c["finish_reason"]], ["length"])
        tokens = [t for c in choices if c["logprobs"] for t in c["logprobs"]["tokens"]]
        self.assertEqual(tokens, whole["choices"][0]["logprobs"]["tokens"])
        self.assertEqual(chunks[-1]["usage"]["total_tokens"], whole["usage"]["total_tokens"])
        # The same connection goes on.
        connection.request("GET", "/health")
        self.assertEqual(connection.getresponse().read(), b'{"status": "ok"}')
        connection.close()

    def test_answers_keep_to_their_grammar(self):
        for seed in range(8):
            request = {"prompt": "Hello", "max_tokens": 40, "seed": seed, "temperature": 2}
            reply = self.server.post("/v1/completions", **request, guided_choice=["yes, indeed", "no"])[1]
            choice = reply["choices"][0]
            self.assertIn(choice["text"], ("yes, indeed", "no"))
            self.assertEqual(choice["finish_reason"], "stop")
            schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}},
                      "required": ["ok", "n"], "additionalProperties": False}
            kept = self.server.post("/v1/completions", **request, n=2, response_format={
                "type": "json_schema", "json_schema": {"name": "s", "schema": schema}})[1]
            for choice in kept["choices"]:
                value = json.loads(choice["text"])
                self.assertEqual((set(value), type(value["ok"])), ({"ok", "n"}, bool))
                self.assertIn(value["n"], (1, 22))
        for fields in ({"guided_regex": "(?=a)b"}, {"guided_grammar": "start: ("}, {"guided_json": {"not": {}}}):
            status, reply, _ = self.server.post("/v1/completions", prompt="Hello", **fields)
            self.assertEqual((status, reply["error"]["param"]), (400, next(iter(fields))), reply)

    def test_echo_scores_a_prompt_as_its_tokens_alone_do(self):
        tokens = self.server.post("/tokenize", prompt="The cat sat on the mat")[1]["tokens"]
        reply = self.server.post("/v1/completions", prompt=tokens, echo=True, logprobs=1, max_tokens=0)[1]
        logprobs = reply["choices"][0]["logprobs"]
        self.assertEqual(len(logprobs["tokens"]), len(tokens))
        self.assertIsNone(logprobs["token_logprobs"][0])
        for chosen, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:]):
            self.assertGreaterEqual(max(top.values()), chosen)
            self.assertLess(chosen, 0)
        self.assertEqual(reply["choices"][0]["text"], self.server.post("/detokenize", tokens=tokens)[1]["prompt"])
        # What follows each prefix by itself has the same probability.
        head = self.server.post("/v1/completions", prompt=tokens[:4], logprobs=20, max_tokens=1, temperature=0)[1]
        best = max(head["choices"][0]["logprobs"]["top_logprobs"][0].values())
        self.assertAlmostEqual(best, max(logprobs["top_logprobs"][4].values()), places=3)

    def test_responses_go_on_from_each_other(self):
        first = self.server.post("/v1/responses", input="Hi", max_output_tokens=4, ignore_eos=True)[1]
        self.assertEqual((first["status"], first["usage"]["output_tokens"]), ("incomplete", 4), first)
        connection = self.server.connect()
        connection.request("POST", "/v1/responses", json.dumps({
            "input": "And?", "previous_response_id": first["id"], "stream": True, "max_output_tokens": 4}))
        events = [json.loads(e) for e in events_of(connection.getresponse())]
        self.assertEqual([e["sequence_number"] for e in events], list(range(len(events))))
        second = events[-1]["response"]
        text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        self.assertEqual(second["output"][0]["content"][0]["text"], text)
        self.assertGreater(second["usage"]["input_tokens"], first["usage"]["input_tokens"] + 4)
        connection.close()
        for response in (first, second):
            path = "/v1/responses/" + response["id"]
            self.assertEqual(self.server.ask("GET", path)[1], response)
            self.assertEqual(self.server.ask("DELETE", path)[0], 200)
            self.assertEqual(self.server.ask("GET", path)[0], 404)

    def test_a_response_is_cancelled_by_another_request(self):
        connection = self.server.connect()
        connection.request("POST", "/v1/responses", json.dumps({"input": "a", "stream": True, "ignore_eos": True}))
        events = events_of(connection.getresponse())
        path = "/v1/responses/" + json.loads(next(events))["response"]["id"]
        self.assertEqual(self.server.ask("GET", path)[1]["status"], "in_progress")
        self.assertEqual(self.server.ask("POST", path + "/cancel")[0], 200)
        self.assertEqual(json.loads(list(events)[-1])["response"]["status"], "cancelled")
        self.assertEqual(self.server.ask("GET", path)[1]["status"], "cancelled")
        connection.close()

    def test_a_response_in_the_background_is_asked_for(self):
        def ended(path):
            deadline = time.monotonic() + 20
            while (response := self.server.ask("GET", path)[1])["status"] == "in_progress":
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            return response

        asked = {"input": "Hi", "max_output_tokens": 4, "ignore_eos": True, "temperature": 0}
        status, begun, _ = self.server.post("/v1/responses", **asked, background=True)
        self.assertEqual((status, begun["status"], begun["output"]), (200, "in_progress", []))
        response = ended("/v1/responses/" + begun["id"])
        self.assertEqual(response["usage"]["output_tokens"], 4)
        self.assertEqual(response["output"][0]["content"],
                         self.server.post("/v1/responses", **asked)[1]["output"][0]["content"])
        begun = self.server.post("/v1/responses", input="a", ignore_eos=True, background=True)[1]
        path = "/v1/responses/" + begun["id"]
        self.assertEqual(self.server.post(path + "/cancel")[1]["status"], "cancelled")
        self.assertEqual(ended(path)["status"], "cancelled")

    def test_embeddings_of_texts_and_of_their_tokens(self):
        texts = ["The cat sat", "A dog", "The cat sat on the mat"]
        status, reply, _ = self.server.post("/v1/embeddings", input=texts)
        self.assertEqual(status, 200, reply)
        vectors = [d["embedding"] for d in reply["data"]]
        for vector in vectors:
            self.assertAlmostEqual(sum(x * x for x in vector), 1, places=5)
        self.assertNotEqual(vectors[0], vectors[1])
        tokens = [self.server.post("/tokenize", prompt=text)[1]["tokens"] for text in texts]
        coded = self.server.post("/v1/embeddings", input=tokens, encoding_format="base64")[1]
        self.assertEqual(coded["usage"]["prompt_tokens"], sum(map(len, tokens)))
        for vector, data in zip(vectors, coded["data"]):
            found = struct.unpack(f"<{len(vector)}f", base64.b64decode(data["embedding"]))
            for a, b in zip(vector, found):
                self.assertAlmostEqual(a, b, places=6)

    def test_chat_and_several_answers(self):
        status, reply, _ = self.server.post("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], n=3,
                                            max_tokens=4, seed=1, ignore_eos=True)
        self.assertEqual(status, 200, reply)
        self.assertEqual([c["index"] for c in reply["choices"]], [0, 1, 2])
        self.assertEqual(reply["usage"]["completion_tokens"], 12)
        self.assertGreater(reply["usage"]["tinyserve"]["first_token_seconds"], 0)

    def test_a_client_that_leaves_cancels_its_request(self):
        for stream in (True, False):
            aborted = self.server.metric("vllm:request_success_total", '"abort"')
            connection = self.server.connect()
            connection.request("POST", "/v1/completions", json.dumps({**LONG, "stream": stream, "n": 6}))
            if stream:
                next(events_of(connection.getresponse()))
            else:
                self.server.wait_until(lambda: self.server.metric("vllm:num_requests_running") > 0, "it runs")
            connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
            self.server.wait_until(lambda: self.server.metric("vllm:request_success_total", '"abort"') >= aborted + 6,
                                   "all are cancelled")
            self.server.wait_until(lambda: self.server.metric("vllm:num_requests_running") == 0, "none is left")
        self.assertEqual(self.server.metric("tinyserve:kv_blocks_used"), 0)

    def test_a_deadline_ends_what_runs_and_what_waits(self):
        whole = {**LONG, "stream": False, "tinyserve": {**SLOW, "deadline_ms": 300}}
        start = time.monotonic()
        # Four run, the others wait, and none is done in that time.
        status, reply, _ = self.server.post("/v1/completions", **{**whole, "n": 8})
        self.assertEqual((status, reply["error"]["code"]), (504, "deadline_exceeded"), reply)
        self.assertLess(time.monotonic() - start, 20)
        connection = self.server.connect()
        connection.request("POST", "/v1/completions", json.dumps({**whole, "stream": True}))
        events = [json.loads(e) for e in events_of(connection.getresponse())]
        self.assertTrue(events[0]["choices"])
        self.assertEqual(events[-1]["error"]["code"], "deadline_exceeded")
        connection.request("GET", "/health")  # and the connection goes on
        self.assertEqual(connection.getresponse().status, 200)
        connection.close()
        self.server.wait_until(lambda: self.server.metric("vllm:num_requests_running") == 0, "none is left")
        self.assertEqual(self.server.metric("tinyserve:kv_blocks_used"), 0)

    def test_without_keys_addresses_are_served_alike(self):
        for source, waits_for_all in (("127.0.0.2", False), ("127.0.0.1", True)):
            ended = []
            greedy = self.server.connect()
            greedy.request("POST", "/v1/completions", json.dumps({**LONG, "max_tokens": 60,
                                                                  "prompt": [f"{i} times" for i in range(8)]}))
            reading = threading.Thread(target=lambda reply=greedy.getresponse(), ended=ended: ended.extend(
                1 for event in events_of(reply) if '"finish_reason":"length"' in event.replace(" ", "")))
            reading.start()
            # In this order: four that wait for the engine to take them in are none of those that wait while four run.
            self.server.wait_until(lambda: self.server.metric("vllm:num_requests_running") == 4
                                   and self.server.metric("vllm:num_requests_waiting") == 4, "four run, four wait")
            modest = self.server.connect(source)
            # Slow enough that the other thread has read what ended before.
            modest.request("POST", "/v1/completions", json.dumps({"prompt": "Hi", "max_tokens": 8, "ignore_eos": True,
                                                                  "tinyserve": SLOW}))
            self.assertEqual(modest.getresponse().status, 200)
            self.assertEqual(len(ended) > 4, waits_for_all, f"{len(ended)} of 8 had ended before {source} was served")
            reading.join()
            self.assertEqual(len(ended), 8)
            for connection in (greedy, modest):
                connection.close()

    def test_bad_requests_are_told_and_the_connection_goes_on(self):
        connection = self.server.connect()
        for body, param in ((b"{", None), (b'{"prompt": "x", "nonsense": 1}', "nonsense"),
                            (b'{"prompt": "x", "temperature": 9}', "temperature"), (b"\xff", None),
                            (b'{"prompt": ' + b"[" * 1000, None)):
            connection.request("POST", "/v1/completions", body)
            reply = connection.getresponse()
            self.assertEqual(reply.status, 400)
            error = json.loads(reply.read())["error"]
            self.assertEqual(error["param"], param)
            self.assertEqual(error["type"], "invalid_request_error")
        connection.close()
        self.assertEqual(self.server.ask("GET", "/nothing")[0], 404)
        self.assertEqual(self.server.ask("PUT", "/v1/models")[0], 405)
        self.assertEqual(self.server.ask("GET", "/health", headers={"Host": "evil.example"})[0], 403)
        self.assertEqual(self.server.ask("GET", "/health", headers={"Origin": "http://evil.example"})[0], 403)
        error = self.server.post("/v1/completions", prompt="x " * 20000)[1]["error"]
        self.assertEqual(error["code"], "context_length_exceeded")

    def test_limits_while_reading(self):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        self.assertIn(b" 413 ", self.server.raw(head + b"Content-Length: 65537\r\n\r\n" + b"x" * 65537))
        chunks = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(4))
        self.assertIn(b" 413 ", self.server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks))
        self.assertIn(b" 431 ", self.server.raw(head + b"X: " + b"y" * 5000 + b"\r\n\r\n"))
        self.assertIn(b" 400 ", self.server.raw(b"no http at all\r\n\r\n"))
        self.assertIn(b" 400 ", self.server.raw(b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        self.assertIn(b" 100 Continue", self.server.raw(
            head + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"))

    def test_what_is_no_whole_http_is_told(self):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        cases = ((b"Host: localhost\r\nContent-Length: 2\r\n\r\n{}", 400, b"two Host"),
                 (b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, b"chunked"),
                 (b"Transfer-Encoding: identity\r\n\r\n{}", 400, b"chunked"),
                 (b"Transfer-Encoding: chunked\r\n\r\nno number\r\n", 400, b"framed"),
                 (b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}and more\r\n", 400, b"framed"),
                 (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", 400, b"Content-Length"),
                 (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, b"Content-Length"),
                 (b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", 415, b"decompressed"),
                 (b"Expect: a miracle\r\nContent-Length: 2\r\n\r\n{}", 417, b"100-continue"))
        for rest, status, words in cases:
            received = self.server.raw(head + rest)
            self.assertTrue(received.startswith(b"HTTP/1.1 %d " % status), received)
            error = json.loads(received.split(b"\r\n\r\n", 1)[1])["error"]  # and nothing after it
            self.assertIn(words, error["message"].encode())

    def test_slow_senders_are_dropped(self):
        start = time.monotonic()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n"
        self.assertEqual(self.server.raw(head), b"")  # the head never ends
        self.assertEqual(self.server.raw(head + b"\r\n{"), b"")  # nor does the body
        self.assertEqual(self.server.raw(b""), b"")  # nor does anything come
        self.assertLess(time.monotonic() - start, 30)

    def test_requests_sent_ahead_are_answered_in_order(self):
        one = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        received = self.server.raw(one * 3 + last)
        self.assertEqual(received.count(b"HTTP/1.1 200 OK"), 4)
        self.assertTrue(received.endswith(b'{"status": "ok"}'))

    def test_http_1_0_gets_a_stream_that_ends_with_the_connection(self):
        body = json.dumps({"prompt": "a", "max_tokens": 2, "stream": True}).encode()
        received = self.server.raw(b"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" %
                                   len(body) + body)
        self.assertNotIn(b"chunked", received)
        self.assertTrue(received.endswith(b"data: [DONE]\n\n"))

    def test_too_many_connections_get_a_503(self):
        # All but a few of the 24 allowed ones; other tests' own may still be closing.
        held = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(24)]
        try:
            self.assertIn(b" 503 ", self.server.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        finally:
            for s in held:
                s.close()
        self.server.wait_until(lambda: b" 200 " in self.server.raw(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), "room again")

    def test_a_full_queue_gives_429s_and_the_rest_is_answered(self):
        statuses = []

        def one():
            status, reply, headers = self.server.post("/v1/completions", prompt="a", max_tokens=20, ignore_eos=True,
                                                         tinyserve=SLOW)
            if status == 429:
                assert headers["Retry-After"] and reply["error"]["code"] == "queue_full"
            statuses.append(status)

        threads = [threading.Thread(target=one) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(statuses), 20)
        self.assertEqual(set(statuses), {200, 429})
        self.assertGreaterEqual(statuses.count(200), 8)

    def test_a_reader_that_does_not_read_is_given_up(self):
        body = json.dumps({"prompt": "a", "n": 4, "max_tokens": 400, "ignore_eos": True, "stream": True,
                           "logprobs": 20}).encode()
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", self.server.port))
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) +
                      body)
            # The engine goes on all the same: others are answered, and the pool is empty in the end.
            self.assertEqual(self.server.post("/v1/completions", prompt="b", max_tokens=3)[0], 200)
            self.server.wait_until(lambda: self.server.metric("vllm:num_requests_running") == 0, "all have ended")
        self.assertEqual(self.server.metric("tinyserve:kv_blocks_used"), 0)

    def test_config_and_page(self):
        config = self.server.ask("GET", "/config")[1]
        self.assertEqual(config["header-bytes"], 4096)
        self.assertEqual(config["insecure"], False)
        status, page, headers = self.server.ask("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("frame-ancestors 'none'", headers["Content-Security-Policy"])
        self.assertNotRegex(page, r"(src|href)=[\"']?(https?:)?//")  # nothing from elsewhere


class Access(unittest.TestCase):
    def test_keys_of_file_and_environment_and_their_reload(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
            file.write("# first\nfile-key\n")
            file.flush()
            server = Server("--api-key-file", file.name, env={"TINYSERVE_API_KEYS": "env-a,env-b"})
            try:
                def status(key):
                    return server.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})[0]
                self.assertEqual([status(k) for k in ("file-key", "env-a", "env-b", "env-a,env-b", "x", "")],
                                 [200, 200, 200, 401, 401, 401])
                self.assertEqual(server.ask("GET", "/health")[0], 200)
                self.assertEqual(server.ask("GET", "/v1/models")[0], 401)
                file.seek(0)
                file.truncate()
                file.write("new-key\n")
                file.flush()
                server.process.send_signal(signal.SIGHUP)
                server.wait_until(lambda: status("new-key") == 200, "the new key counts")
                self.assertEqual(status("file-key"), 401)
                for secret in ("file-key", "env-a", "new-key"):
                    self.assertNotIn(secret, server.errors())
                    self.assertNotIn(secret, json.dumps(server.ask(
                        "GET", "/config", headers={"Authorization": "Bearer env-a"})[1]))
            finally:
                self.assertEqual(server.stop(), 0)

    def test_what_cannot_be_served_exits_with_2_and_says_why(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config, socket.socket() as taken:
            config.write("port = 1\nportt = 2\n")
            config.flush()
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            cases = ((("--host", "0.0.0.0"), "--insecure", 2), (("--host", "nowhere", "--insecure"), "'nowhere'", 2),
                     (("--config", config.name), "line 2: there is no option 'portt'", 2),
                     (("--api-key-file", "no/such"), "no/such", 1), (("--port", port), port, 1))
            for args, words, code in cases:
                done = subprocess.run([PROGRAM, "serve", "--model", MODEL, *args], capture_output=True, check=False,
                                      timeout=DEADLINE_S)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(words, done.stderr.decode())

    def test_a_config_file_sets_what_the_command_line_does_not(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            config.write('queue = 5\nsequences = 3\nserved-model-name = ["a", "b"]\nctx = 256\n')
            config.flush()
            server = Server("--config", config.name, "--queue", "6")
            try:
                effective = server.ask("GET", "/config")[1]
                self.assertEqual((effective["queue"], effective["sequences"]), (6, 3))
                models = server.ask("GET", "/v1/models")[1]["data"]
                self.assertEqual([m["id"] for m in models], ["a", "b"])
                self.assertEqual(models[0]["max_model_len"], 256)
            finally:
                self.assertEqual(server.stop(), 0)


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.cert, cls.key = (os.path.join(cls.folder.name, name) for name in ("cert.pem", "key.pem"))
        cls.make_certificate()
        cls.server = Server("--tls-cert", cls.cert, "--tls-key", cls.key, "--header-seconds", "1", "--sequences", "4")
        cls.context = ssl.create_default_context(cafile=cls.cert)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0
        cls.folder.cleanup()

    @classmethod
    def make_certificate(cls):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", cls.key, "-out", cls.cert, "-days", "2", "-subj", "/CN=localhost",
                        "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)

    def connect(self):
        return http.client.HTTPSConnection("127.0.0.1", self.server.port, timeout=DEADLINE_S, context=self.context)

    def ask(self, method, path, body=None):
        connection = self.connect()
        connection.request(method, path, json.dumps(body) if body else None)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def aborted(self):
        found = re.search(r'request_success_total{[^}]*"abort"[^}]*} (.*)', self.ask("GET", "/metrics"))
        return float(found.group(1)) if found else 0

    def running(self):
        return float(re.search(r"vllm:num_requests_running{[^}]*} (.*)", self.ask("GET", "/metrics")).group(1))

    def test_requests_and_streams(self):
        connection = self.connect()
        for _ in range(3):  # the connection goes on
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "x" * 20000, "max_tokens": 1}))
            self.assertIn("context", connection.getresponse().read().decode())
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 9, "stream": True}))
        self.assertEqual(list(events_of(connection.getresponse()))[-1], "[DONE]")
        connection.close()
        self.assertIn("https://127.0.0.1", self.server.greeting)

    def test_a_client_that_leaves_cancels_its_request(self):
        for body in ({**LONG, "n": 8}, {**LONG, "n": 8, "stream": False}):
            aborted = self.aborted()
            connection = self.connect()
            connection.request("POST", "/v1/completions", json.dumps(body))
            self.server.wait_until(lambda: self.running() > 0, "it runs")
            if not body["stream"]:  # TLS's goodbye, which nobody reads, and then the end
                connection.sock.settimeout(0.05)
                with contextlib.suppress(OSError):
                    connection.sock.unwrap()
            connection.close()
            self.server.wait_until(lambda: self.running() == 0, "it is cancelled")
            self.server.wait_until(lambda: self.aborted() > aborted, "it is counted")

    def test_what_speaks_no_tls_is_dropped(self):
        self.assertNotIn(b"HTTP/1.1 200", self.server.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        self.assertEqual(self.server.raw(b""), b"")  # nor who says nothing
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", self.server.port)) as plain, self.assertRaises(OSError):
            old.wrap_socket(plain)
        self.assertIn("ok", self.ask("GET", "/health"))

    def test_a_new_certificate_is_read_at_sighup(self):
        def served():
            return ssl.get_server_certificate(("127.0.0.1", self.server.port))
        old, kept = served(), self.connect()
        kept.request("GET", "/health")
        kept.getresponse().read()
        with open(self.cert, "w", encoding="utf-8") as file:
            file.write("no certificate")
        self.server.process.send_signal(signal.SIGHUP)
        self.server.wait_until(lambda: "the certificate stays as it was" in self.server.errors(), "it is refused")
        self.assertEqual(served(), old)
        self.make_certificate()
        self.server.process.send_signal(signal.SIGHUP)
        self.server.wait_until(lambda: served() != old, "the new one is served")
        type(self).context = ssl.create_default_context(cafile=self.cert)
        self.assertIn("ok", self.ask("GET", "/health"))
        kept.request("GET", "/health")  # and connections of before go on
        self.assertIn(b"ok", kept.getresponse().read())
        kept.close()

    def test_files_that_are_wrong_are_told(self):
        cases = ((("--tls-cert", self.cert), "both a certificate and its key"),
                 (("--tls-cert", self.key, "--tls-key", self.key), self.key),
                 (("--tls-cert", self.cert, "--tls-key", "/no/such"), "/no/such"))
        for args, words in cases:
            done = subprocess.run([PROGRAM, "serve", "--model", MODEL, *args], capture_output=True, check=False,
                                  timeout=DEADLINE_S)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(words, done.stderr.decode())


class Stopping(unittest.TestCase):
    def test_what_runs_is_finished_and_nothing_new_is_taken(self):
        server = Server()
        connection, idle = server.connect(), server.connect()
        idle.request("GET", "/health")
        idle.getresponse().read()
        connection.request("POST", "/v1/completions", json.dumps(LONG))
        reply = connection.getresponse()
        events = events_of(reply)
        next(events)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(list(events)[-1], "[DONE]")
        self.assertEqual(server.process.wait(DEADLINE_S), 0)
        self.assertEqual(idle.sock.recv(1), b"")
        with self.assertRaises(OSError):
            server.ask("GET", "/health")
        server.stop()
        connection.close()
        idle.close()

    def test_what_does_not_end_in_time_is_dropped(self):
        server = Server("--drain-seconds", "0")
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps({**LONG, "n": 8}))
        next(events_of(connection.getresponse()))
        start = time.monotonic()
        self.assertEqual(server.stop(signal.SIGINT), 0)
        self.assertLess(time.monotonic() - start, 20)
        connection.close()


if __name__ == "__main__":
    PROGRAM, MODEL, SLOW_STEP = sys.argv[1:4]
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
