#!/usr/bin/env python3
"""What the clients of a server get: serving.py PROGRAM MODEL [--what tax,short,turns,gaps] [--text FILE] [--rounds N].

It starts `PROGRAM serve --model MODEL` for each selector and prints rows of tables for RESULTS.md:

tax:    tokens/s of eight greedy streams over HTTP, at each depth, and beside it what `PROGRAM bench` makes of the same
        number of sequences in as many steps at the depth that the streams were at. Their prompts are in the prefix
        cache, so that all begin at one depth. The client looks at its sockets twenty times a second; what it takes of
        the cores is printed, too.
short:  time to first token of a short prompt, and how much of it is not the engine's own.
turns:  time to first token of a conversation's second turn (a message of 32 tokens) after a first of 4096 tokens:
        beside the first turn's, and beside what `bench` needs for the tokens that are new, at that depth.
gaps:   four streams at depth 1000 while a prompt of 6000 tokens arrives: their gaps between tokens before and
        meanwhile, and the prompt's time to first token beside that alone.

Only the standard library, in one process that does as little as it can: it runs on the server's cores. Prompts are
token ids of the text, another part each time, so that no cache knows them."""

import argparse
import json
import random
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time

STREAMS = 8
WINDOW_SECONDS = 5
TOKEN_MARK = b'"finish_reason": null'  # of each chunk but the last ones


class Server:
    """`tinyserve serve`, until the end of a `with`."""

    def __init__(self, options, selector):
        command = [options.program, "serve", "--model", options.model, "--port", "0", "--log-level", "warning",
                   "--selector", selector, "--kv-memory", options.kv_memory, *options.serve]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = None
        for line in self.process.stdout:
            found = re.search(r"dashboard +http://[^:]+:(\d+)/", line)
            if found:
                self.port = int(found.group(1))
                break
        if self.port is None:
            raise RuntimeError(f"{' '.join(command)} did not start")
        with open(options.text, encoding="utf-8") as text:
            self.tokens = self.ask("/tokenize", {"prompt": text.read(), "add_special_tokens": False})["tokens"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process.stdout.close()

    def send(self, path, body):
        """A connection on which the request was sent."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                           % (path.encode(), len(data)) + data)
        return connection

    def ask(self, path, body):
        with self.send(path, body) as connection:
            head, _, reply = b"".join(iter(lambda: connection.recv(1 << 20), b"")).partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"{path}: {reply[:300]}")
        return json.loads(reply)

    def part(self, count):
        start = random.randrange(len(self.tokens) - count)
        return self.tokens[start:start + count]


class Stream:
    """A greedy completion of token ids that is read as it comes."""

    def __init__(self, server, prompt, max_tokens):
        self.arrivals = []  # of its tokens
        self.data = bytearray()
        self.begin = time.perf_counter()
        self.connection = server.send("/v1/completions", {
            "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}})

    def receive(self):
        """False: it has ended."""
        data = self.connection.recv(1 << 16)
        now = time.perf_counter()
        seen = max(0, len(self.data) - len(TOKEN_MARK) + 1)  # a mark may come in two parts
        self.data += data
        self.arrivals += [now] * self.data.count(TOKEN_MARK, seen)
        if not data:
            self.connection.close()
            if b"data: [DONE]" not in self.data:
                raise RuntimeError(f"a stream ended early: {bytes(self.data[-300:])}")
        return bool(data)

    @property
    def first(self):
        return self.arrivals[0] - self.begin

    def chunks(self):
        return [json.loads(line[6:]) for line in self.data.split(b"\n") if line.startswith(b"data: {")]

    def usage(self):
        return self.chunks()[-1]["usage"]

    def text(self):
        return "".join(choice["text"] for chunk in self.chunks() for choice in chunk["choices"])


def read_all(streams, until=None, rest=0):
    """Receives until all have ended, or until(now) is true, and rests so many seconds after each look. Returns the
    longest time between two looks, in seconds."""
    longest, last = 0, time.perf_counter()
    with selectors.DefaultSelector() as waiting:
        for stream in streams:
            waiting.register(stream.connection, selectors.EVENT_READ, stream)
        while waiting.get_map():
            for key, _ in waiting.select(1):
                if not key.data.receive():
                    waiting.unregister(key.fileobj)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            if until and until(now):
                break
            if rest:
                time.sleep(rest)
    return longest


def read(server, prompt, max_tokens):
    stream = Stream(server, prompt, max_tokens)
    read_all([stream])
    return stream


def bench(options, selector, *args):
    """tokens/s of the one case that `args` ask for."""
    command = [options.program, "bench", "--no-peaks", "--model", options.model, "--text", options.text, "--selector",
               selector, "--kv-memory", options.kv_memory, "--repeat", "1", "--json", "-", *map(str, args)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cases = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return cases[-1]["tokens_per_s"]["median"]


def spread(values, form):
    return f"{form % statistics.median(values)} ({form % min(values)}–{form % max(values)})"


def streams_at(server, depth):
    """Of the window: tokens/s of all streams, their steps, the depth at its begin, and CPU seconds that each token
    costs this client."""
    prompts = [server.part(max(depth, 16)) for _ in range(STREAMS)]
    for prompt in prompts:
        read(server, prompt, 1)
    streams = [Stream(server, prompt, 3500) for prompt in prompts]
    begun, cpu = [], []

    def enough(now):
        if not begun and all(stream.arrivals for stream in streams):
            begun.extend([now, *(len(stream.arrivals) for stream in streams)])
            cpu.append(time.process_time())
        return bool(begun) and now - begun[0] > WINDOW_SECONDS

    # Only counted, so that this client need not wake for each token: it has no cores of its own.
    held_up = read_all(streams, enough, rest=0.05)
    seconds, cpu_seconds = time.perf_counter() - begun[0], time.process_time() - cpu[0]
    counts = [len(stream.arrivals) for stream in streams]
    for stream in streams:
        stream.connection.close()
    if held_up > 2:  # a second is what one look takes where nothing comes
        print(f"this client was held up for {held_up:.1f} s: once more", file=sys.stderr)
        return streams_at(server, depth)
    tokens = sum(counts) - sum(begun[1:])
    return tokens / seconds, tokens // STREAMS, max(depth, 16) + sum(begun[1:]) // STREAMS, cpu_seconds / tokens


def tax(options, selector):
    for depth in options.depth:
        http, engine, ends = [], [], []
        for _ in range(options.rounds):
            with Server(options, selector) as server:
                rate, steps, at, cost = streams_at(server, depth)
            http.append(rate)
            ends += [at, at + steps]
            engine.append(bench(options, selector, "--prefill", "", "--decode", steps, "--batch", STREAMS,
                                "--depth", at))
        ratios = [a / b for a, b in zip(http, engine)]
        print(f"| tax | {selector} | {depth}: {min(ends)}–{max(ends)} | {spread(http, '%.0f')} | "
              f"{spread(engine, '%.0f')} | {spread(ratios, '%.3f')} | client {cost * 1e6:.1f} µs a token |", flush=True)


def short(options, selector):
    with Server(options, selector) as server:
        read(server, server.part(12), 2)
        times, added = [], []
        for _ in range(30 * options.rounds):
            stream = read(server, server.part(12), 2)
            times.append(stream.first * 1e3)
            added.append(stream.first * 1e3 - stream.usage()["tinyserve"]["first_token_seconds"] * 1e3)
    added.sort()
    print(f"| short | {selector} | first token after {statistics.median(times):.2f} ms at p50, of which not the "
          f"engine's {statistics.median(added):.2f} ms (p90 {added[len(added) * 9 // 10]:.2f}) |", flush=True)


def turns(options, selector):
    firsts, seconds, shares, overs = [], [], [], []
    with Server(options, selector) as server:
        for _ in range(options.rounds):
            prompt = server.part(4096)
            first = read(server, prompt, 64)
            answer = server.ask("/tokenize", {"prompt": first.text(), "add_special_tokens": False})["tokens"]
            second = read(server, prompt + answer + server.part(32), 2)
            usage = second.usage()
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            fresh = usage["prompt_tokens"] - cached
            rate = bench(options, selector, "--prefill", fresh, "--decode", 0, "--depth", cached)
            firsts.append(first.first * 1e3)
            seconds.append(second.first * 1e3)
            shares.append(second.first / first.first * 100)
            overs.append(second.first / (fresh / rate))
    print(f"| turns | {selector} | first {spread(firsts, '%.0f')} ms, second {spread(seconds, '%.1f')} ms with {fresh} "
          f"tokens of {usage['prompt_tokens']} new: {spread(shares, '%.2f')} %, {spread(overs, '%.2f')} times bench |",
          flush=True)


def gaps(options, selector):
    slower, delays = [], []
    with Server(options, selector) as server:
        for _ in range(options.rounds):
            alone = read(server, server.part(6000), 2)
            streams = [Stream(server, server.part(1000), 1500) for _ in range(4)]
            # Some gaps of all of them.
            read_all(streams, lambda _: all(len(stream.arrivals) > 60 for stream in streams))
            arriving = Stream(server, server.part(6000), 2)
            read_all([*streams, arriving], lambda _: bool(arriving.arrivals))
            for stream in [*streams, arriving]:
                stream.connection.close()
            before, during = [], []
            started = max(stream.arrivals[0] for stream in streams)
            for stream in streams:
                for a, b in zip(stream.arrivals, stream.arrivals[1:]):
                    if a > started and b < arriving.begin:
                        before.append(b - a)
                    elif b > arriving.begin:
                        during.append(b - a)
            p99 = sorted(during)[int(0.99 * len(during))]
            slower.append(p99 / statistics.median(before))
            delays.append(arriving.first / alone.first)
    print(f"| gaps | {selector} | p99 gap meanwhile {spread(slower, '%.2f')} times the median before, first token "
          f"after {spread(delays, '%.2f')} times as long as alone ({alone.first:.2f} s) |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--what", default="tax,short,turns,gaps", help="which of these, separated by commas")
    parser.add_argument("--selector", action="append", help="may be repeated [full, default]")
    parser.add_argument("--depth", default="0,4096", help="of tax")
    parser.add_argument("--text", default="data/moby-dick.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-memory", default="4G")
    parser.add_argument("--serve", default="", help="further options of the server, as in '--io-threads 1'")
    options = parser.parse_args()
    options.serve = options.serve.split()
    options.depth = [int(depth) for depth in options.depth.split(",")]
    measures = {"tax": tax, "short": short, "turns": turns, "gaps": gaps}
    wanted = options.what.split(",")
    unknown = [what for what in wanted if what not in measures]
    if unknown:
        parser.error(f"--what {unknown[0]}: allowed are {', '.join(measures)}")
    for what in wanted:
        for selector in options.selector or ["full", "default"]:
            measures[what](options, selector)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
