#!/usr/bin/env python3
"""What a step on a GPU should take, on paper: predict_gpu.py [--check FILE].

Prints the table of docs/kernels/cuda_predicted.md: times of each kernel family and of whole steps, from bytes and
operations and what vendors publish of four devices. --check FILE says whether that file has this very table. Nothing
here was measured.
"""

import sys
from dataclasses import dataclass


@dataclass
class Device:
    """As published: bytes/s, multiprocessors, boost clock, and what tensor cores do a cycle and multiprocessor:
    dense f16 flop with f32 sums, as far as mma.sync reaches them."""
    name: str
    bandwidth: float
    processors: int
    clock: float
    tensor: float

    def cycles(self, count):
        """Seconds of `count` cycles spread over all multiprocessors."""
        return count / (self.processors * self.clock)


DEVICES = [
    Device("A100 40 GB", 1555e9, 108, 1.41e9, 2048),
    Device("L4", 300e9, 58, 2.04e9, 1024),
    Device("RTX 4090", 1008e9, 128, 2.52e9, 512),
    Device("H100 SXM", 3350e9, 132, 1.83e9, 0.6 * 4096),
]

# SmolLM2-135M Q4_1.
LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 30, 576, 9, 3, 64, 1536, 49152
GROUP = HEADS // KV_HEADS
MATRICES = [((HEADS + 2 * KV_HEADS) * HEAD_DIM, DIM), (DIM, DIM), (2 * FFN, DIM), (DIM, FFN)]  # of a layer
BITS = 5  # of a weight, scales with it

# Assumptions, each named in the document.
LAUNCH = 2.5e-6        # s of a kernel in a graph, at least
STREAMED = 0.8         # share of the bandwidth that long reads get
SELECTED = 0.6         # the same where lists, choices and merges lie between reads
LATENCY = 0.6e-6       # s until a tile is there
DP4A = 64 * 0.5        # dp4a a cycle and multiprocessor, half of what it issues
ISSUED = 4 * 0.5       # instructions of warps a cycle and multiprocessor, half of what it issues
TENSOR_PRODUCTS = 1 / 3  # share of the tensor peak in products
TENSOR_ATTENTION = 0.6   # the most of it in attention
UPPER_BYTES = 7        # of upper planes a cycle and multiprocessor: the cascade's instructions
WALK = 6e-6            # s of a draw's last thread

# Attention of prompts: instructions of a warp for a tile of 64 queries and 64 tokens, and with decoding it.
TILE_INSTRUCTIONS = {"f16": 670, "default": 1160}
TILE_FLOP = 4 * 64 * 64 * HEAD_DIM


def weights(matrices):
    return sum(rows * cols for rows, cols in matrices)


def products(device, rows, matrices):
    """Generated rows: blocks of 8 share what they read of a matrix by the second-level cache."""
    total = 0
    for matrix in matrices:
        read = weights([matrix]) * BITS / 8 / (STREAMED * device.bandwidth)
        total += max(LAUNCH, read, device.cycles(rows * weights([matrix]) / 4 / DP4A))
    return total


def attention(device, rows, depth, preset):
    if depth == 0:
        return LAYERS * LAUNCH * (2 if preset else 1)
    items = rows * KV_HEADS
    if not preset:
        read = items * depth * 2 * HEAD_DIM * 2 / (STREAMED * device.bandwidth)
        # A split of 256 tokens is eight tiles, one after another.
        return LAYERS * max(read, LAUNCH + 8 * LATENCY)
    pages, candidates = depth // 16, max(3072, 0.32 * depth) / 16
    full, values = 0.02 * depth, 0.15 * depth
    upper = candidates * 520
    others = pages * 72 + full * 189 + values * HEAD_DIM + candidates * 128
    bandwidth = SELECTED * device.bandwidth
    upper_time = max(items * upper / bandwidth, device.cycles(items * upper / UPPER_BYTES))
    # The launches that read wait for two or three tiles; that of open tokens for two.
    return LAYERS * max(upper_time + items * others / bandwidth, 4 * LAUNCH + 8 * LATENCY)


def decode(device, rows, depth, preset):
    sampled = rows * 3 * VOCAB * 4 / (STREAMED * device.bandwidth)
    return {
        "products": LAYERS * products(device, rows, MATRICES) + products(device, rows, [(VOCAB, DIM)]),
        "rows, appending, codes": (LAYERS * (5 + (1 if preset else 0)) + 3) * LAUNCH,
        "attention": attention(device, rows, depth, preset),
        "draws": max(LAUNCH, sampled) + WALK,
    }


def prompt(device, tokens, preset):
    """In chunks of 512: weights stay in the second-level cache within one."""
    chunks = tokens // 512
    flop = 2 * LAYERS * weights(MATRICES) * tokens
    tensor = device.cycles(flop / device.tensor / TENSOR_PRODUCTS)
    tiles = LAYERS * HEADS * tokens * tokens / 2 / (64 * 64)
    issue = 4 * TILE_INSTRUCTIONS["default" if preset else "f16"] / ISSUED
    return {
        "products": max(tensor, chunks * LAYERS * 4 * LAUNCH),
        "rows, appending, codes": chunks * LAYERS * (5 + (1 if preset else 0)) * LAUNCH,
        "attention": device.cycles(tiles * max(TILE_FLOP / device.tensor / TENSOR_ATTENTION, issue)),
    }


def shown(seconds):
    ms = seconds * 1e3
    return f"{ms:.0f} ms" if ms >= 20 else f"{ms:.1f} ms" if ms >= 1.95 else f"{ms:.2f} ms"


def cases():
    for preset in (False, True):
        storage = "preset `default`" if preset else "dense f16"
        for rows in (1, 64):
            for depth in (0, 8192):
                name = f"{storage}, batch {rows}, depth {'8K' if depth else '0'}"
                yield name, [decode(device, rows, depth, preset) for device in DEVICES]
        yield f"{storage}, prompt of 8K", [prompt(device, 8192, preset) for device in DEVICES]


def table():
    names = " | ".join(device.name for device in DEVICES)
    lines = [f"| case | family | {names} | measured |", "|---|---|" + "---|" * (len(DEVICES) + 1)]
    for name, found in cases():
        for family in found[0]:
            times = " | ".join(shown(families[family]) for families in found)
            lines.append(f"| {name} | {family} | {times} | |")
        whole = " | ".join(f"**{shown(sum(families.values()))}**" for families in found)
        lines.append(f"| {name} | **whole** | {whole} | |")
    return "\n".join(lines)


def main(arguments):
    if arguments[:1] != ["--check"]:
        print(table())
        return 0
    with open(arguments[1], encoding="utf-8") as file:
        text = file.read()
    if table() in text:
        return 0
    print(f"{arguments[1]}: its table is not what {sys.argv[0]} prints")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
