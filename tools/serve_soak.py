#!/usr/bin/env python3
"""`tinyserve serve` under clients of every kind for a while: serve_soak.py PROGRAM MODEL [--seconds N] [--clients N].

Streams that are read, left, or read slowly, several answers, shared prompts, requests that are wrong or too long,
bursts beyond the queue, thousands of connections that say nothing, and a pool so small that requests give way. In
the end nothing may be held: no request, no KV block, no memory."""

import argparse
import http.client
import json
import random
import resource
import socket
import sys
import threading
import time

import serve_test
from serve_test import Server

QUEUE = 64
DROPPED = 10000
BURST = 1000
# Of resident memory after a quarter of the time. A short run still meets buffers that it had not needed before.
GROWTH_MAX = 0.01
GROWTH_FREE_BYTES = 3 << 20


def resident_bytes(server):
    with open(f"/proc/{server.process.pid}/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


class Client(threading.Thread):
    """Does one thing after another until it is told to stop; `wrong` holds what it did not expect."""

    def __init__(self, server, seed, stop):
        super().__init__()
        self.server, self.random, self.stop_at = server, random.Random(seed), stop
        self.wrong, self.done = [], 0

    def run(self):
        actions = [self.read, self.read, self.leave, self.several, self.mistaken, self.too_long, self.slow]
        while not self.stop_at.is_set():
            action = self.random.choice(actions)
            try:
                action()
            except Exception as error:  # pylint: disable=broad-except
                self.wrong.append(f"{action.__name__}: {error!r}")
            self.done += 1

    def prompt(self):
        """Half of them begin alike."""
        shared = "once upon a time there was a cat " * self.random.randrange(3)
        return shared + "".join(self.random.choices("abcdefgh ", k=self.random.randrange(1, 60)))

    def expect(self, status, *allowed):
        if status not in allowed:
            self.wrong.append(f"status {status}, not {allowed}")

    def stream(self, max_tokens):
        connection = self.server.connect()
        connection.request("POST", "/v1/completions",
                           json.dumps({"prompt": self.prompt(), "max_tokens": max_tokens, "stream": True}))
        return connection, connection.getresponse()

    def read(self):
        connection, reply = self.stream(self.random.randrange(1, 40))
        text = reply.read()
        self.expect(reply.status, 200, 429)
        if reply.status == 200 and not text.endswith(b"data: [DONE]\n\n"):
            self.wrong.append("a stream has no end")
        connection.close()

    def leave(self):
        connection, reply = self.stream(100)
        reply.read(self.random.randrange(200))
        connection.close()

    def slow(self):
        connection, reply = self.stream(60)
        while reply.read(100) and not self.stop_at.is_set():
            time.sleep(0.02)
        connection.close()

    def several(self):
        prompts = [self.prompt(), self.prompt()]
        status, reply, _ = self.server.post("/v1/completions", prompt=prompts, n=2, max_tokens=5)
        self.expect(status, 200, 429)
        if status == 200 and len(reply["choices"]) != 4:
            self.wrong.append("answers are missing")

    def mistaken(self):
        wrong = [{"prompt": ""}, {"prompt": "a", "n": 0}, {"prompt": [-1]}, {"prompt": "a", "temperature": "hot"}, {}]
        self.expect(self.server.post("/v1/completions", **self.random.choice(wrong))[0], 400)

    def too_long(self):
        self.expect(self.server.ask("POST", "/v1/completions", "x" * (1 << 17))[0], 413)


def drop_connections(server, count):
    for i in range(count):
        with socket.create_connection(("127.0.0.1", server.port), timeout=serve_test.DEADLINE_S) as s:
            if i % 3 == 0:
                s.sendall(b"POST /v1/comp")


def burst(server, count):
    """More requests at once than run and wait -> how many were answered, how many refused."""
    body = json.dumps({"prompt": "burst", "max_tokens": 20}).encode()
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n")
    sockets = []
    for _ in range(count):
        s = socket.create_connection(("127.0.0.1", server.port), timeout=serve_test.DEADLINE_S)
        s.sendall(head.encode() + body)
        sockets.append(s)
    statuses = []
    for s in sockets:
        reply = http.client.HTTPResponse(s)
        reply.begin()
        statuses.append(reply.status)
        if reply.status == 429:
            assert reply.headers["Retry-After"], "a 429 does not say when to try again"
        reply.read()
        s.close()
    assert set(statuses) <= {200, 429}, set(statuses)
    return statuses.count(200), statuses.count(429)


def soak(server, seconds, count):
    """-> resident bytes after a quarter of the time, and at its end"""
    stop = threading.Event()
    clients = [Client(server, seed, stop) for seed in range(count)]
    for client in clients:
        client.start()
    time.sleep(seconds / 4)
    before = resident_bytes(server)
    time.sleep(seconds * 3 / 4)
    stop.set()
    for client in clients:
        client.join()
    wrong = [what for client in clients for what in client.wrong]
    assert not wrong, f"{len(wrong)} surprises, such as {wrong[:5]}"
    print(f"{sum(c.done for c in clients)} requests of {count} clients in {seconds} s")
    return before, resident_bytes(server)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, default=12)
    options = parser.parse_args()
    serve_test.PROGRAM, serve_test.MODEL = options.program, options.model
    # A file descriptor for each connection, here and, inherited, in the server.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 4 * BURST if hard == resource.RLIM_INFINITY else min(hard, 4 * BURST)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    server = Server("--log-level", "error", "--queue", str(QUEUE), "--connections", str(2 * BURST),
                    "--body-bytes", "65536", "--kv-memory", "64K")
    drop_connections(server, DROPPED)
    answered, refused = burst(server, BURST)
    print(f"of {BURST} requests at once {answered} were answered and {refused} refused")
    assert answered >= QUEUE
    before, after = soak(server, options.seconds, options.clients)
    print(f"resident: {before >> 10} KiB after a quarter of the time, {after >> 10} KiB at the end")
    assert after <= before * (1 + GROWTH_MAX) + GROWTH_FREE_BYTES
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "tinyserve:kv_blocks_used"):
        server.wait_until(lambda name=name: server.metric(name) == 0, f"{name} stays above 0")
    server.wait_until(lambda: server.metric("tinyserve:connections") <= 1, "connections stay")
    print(f"{server.metric('vllm:num_preemptions_total'):.0f} preemptions, "
          f"{server.metric('vllm:prefix_cache_hits_total'):.0f} prompt tokens found in the cache")
    assert server.stop() == 0, server.errors()
    return 0


if __name__ == "__main__":
    sys.exit(main())
