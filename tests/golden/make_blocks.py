#!/usr/bin/env python3
"""Writes blocks.bin: random blocks of every quantised type with the floats they stand for.

The floats come from the `gguf` package, so that src/tensor/convert_test.cc compares with a decoder that
shares nothing with ours. Needs gguf and numpy as pinned in requirements.txt. Run it in this folder.

Layout, little endian: for each type  char name[8], u32 elems, u32 bytes, the bytes, elems * f32.
"""

import struct

import gguf
import numpy as np

ELEMS = 1024
# Offsets of the half floats in a block, so that they can be made finite.
HALVES = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "BF16": [],
}


def random_halves(rng, count):
    """Mostly of ordinary size, some denormal, some zero, some large; all finite."""
    bits = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    values = bits.view(np.float16)
    ordinary = (rng.standard_normal(count) * 0.02).astype(np.float16)
    finite = np.isfinite(values)
    chosen = np.where((rng.random(count) < 0.7) | ~finite, ordinary, values)
    return chosen.astype(np.float16)


def blocks_of(name, rng):
    kind = gguf.GGMLQuantizationType[name]
    block_elems, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (ELEMS // block_elems, block_bytes), dtype=np.uint8)
    if name == "BF16":  # clears one exponent bit: no infinity, no NaN
        raw[:, 1] &= 0xBF
    for offset in HALVES[name]:
        raw[:, offset : offset + 2] = random_halves(rng, raw.shape[0]).view(np.uint8).reshape(-1, 2)
    values = gguf.quants.dequantize(raw.reshape(1, -1), kind).astype(np.float32).reshape(-1)
    assert values.size == ELEMS and np.isfinite(values).all(), name
    return raw.tobytes(), values.tobytes()


def main():
    rng = np.random.default_rng(20240229)
    with open("blocks.bin", "wb") as out:
        for name in sorted(HALVES):
            raw, values = blocks_of(name, rng)
            out.write(struct.pack("<8sII", name.encode(), ELEMS, len(raw)) + raw + values)


if __name__ == "__main__":
    main()
