#!/usr/bin/env python3
"""What clients of a running `tinyserve serve` wait for: serving.py PORT turns|gaps|short [--text FILE] [--repeat N].

turns: a conversation's second turn after a long first one: time to first token of both, and their ratio.
gaps:  four streams at depth 1000 while a prompt of about 6000 tokens arrives: their gaps between tokens before and
       meanwhile, and the prompt's time to first token beside that alone.
short: time to first token of a short prompt, and what of it the engine took.

Only the standard library. Prompts are parts of the text, another one each time, so that no cache knows them."""

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time


class Stream:
    """One chat request, read to its end."""

    def __init__(self, port, messages, max_tokens):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}
        start = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {reply.read()[:300]}")
        self.arrivals, self.text, self.usage = [], "", {}
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    self.arrivals.append(time.perf_counter())
                    self.text += choice["delta"]["content"]
        connection.close()
        self.first = self.arrivals[0] - start


class Bench:
    def __init__(self, port, words):
        self.port, self.words = port, words

    def ask(self, count, max_tokens):
        return Stream(self.port, [self.user(count)], max_tokens)

    def user(self, count):
        start = random.randrange(len(self.words) - count)
        return {"role": "user", "content": " ".join(self.words[start:start + count])}

    def turns(self):
        question = self.user(2900)
        first = Stream(self.port, [question], 64)
        second = Stream(self.port, [question, {"role": "assistant", "content": first.text}, self.user(22)], 8)
        usage = second.usage
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"first turn: {first.usage['prompt_tokens']} tokens, {first.first * 1e3:.0f} ms; second: "
              f"{usage['prompt_tokens']} tokens, {cached} cached, {second.first * 1e3:.0f} ms: "
              f"{second.first / first.first:.1%}")

    def gaps(self):
        alone = self.ask(4300, 2)
        streams = []
        threads = [threading.Thread(target=lambda: streams.append(self.ask(720, 400))) for _ in range(4)]
        for thread in threads:
            thread.start()
        # Until all of them generate and some gaps are seen.
        time.sleep(alone.first * 4 * 720 / 4300 * 1.5 + 4)
        begin = time.perf_counter()
        arriving = self.ask(4300, 2)
        end = begin + arriving.first
        for thread in threads:
            thread.join()
        before, during = [], []
        started = max(stream.arrivals[0] for stream in streams)
        for stream in streams:
            for a, b in zip(stream.arrivals, stream.arrivals[1:]):
                if a > started and b < begin:
                    before.append(b - a)
                elif b > begin and a < end:
                    during.append(b - a)
        if len(before) < 20 or len(during) < 20:
            print(f"too few gaps: {len(before)} before, {len(during)} meanwhile")
            return
        median, p99 = statistics.median(before), sorted(during)[int(0.99 * len(during))]
        print(f"a prompt of {arriving.usage['prompt_tokens']} tokens among four streams: median gap before "
              f"{median * 1e3:.0f} ms ({len(before)} gaps), p99 meanwhile {p99 * 1e3:.0f} ms ({len(during)} gaps): "
              f"{p99 / median:.2f} times; first token after {arriving.first:.1f} s, alone {alone.first:.1f} s: "
              f"{arriving.first / alone.first:.2f} times")

    def short(self):
        times, added = [], []
        for _ in range(40):
            stream = self.ask(8, 2)
            times.append(stream.first * 1e3)
            added.append((stream.first - stream.usage["tinyserve"]["first_token_seconds"]) * 1e3)
        print(f"short prompt: first token after {statistics.median(times):.1f} ms at p50, of which the server and the "
              f"socket took {statistics.median(added):.2f} ms (p90 {sorted(added)[35]:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("port", type=int)
    parser.add_argument("what", choices=["turns", "gaps", "short"])
    parser.add_argument("--text", default="data/moby-dick.txt")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with open(options.text, encoding="utf-8") as text:
        bench = Bench(options.port, text.read().split())
    for _ in range(options.repeat):
        getattr(bench, options.what)()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
