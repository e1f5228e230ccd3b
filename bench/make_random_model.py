#!/usr/bin/env python3
"""Writes a GGUF file of a real model's shape and quantisation, with random weights, in seconds.

For measuring speed: an engine reads the same bytes and multiplies the same shapes as with the real model, but the text
that comes out means nothing. Any engine that reads GGUF can load it. Needs: pip install gguf==0.18.0 numpy==2.2.6

    python3 bench/make_random_model.py --shape llama-3.2-1b --quant q4_k_m --out models/random-llama-3.2-1b.Q4_K_M.gguf

Blocks are made directly (random codes, scales of a sane size) instead of quantising floats, one tensor at a time; each
weight has mean 0 and a standard deviation of about 0.02. A tensor's bytes depend on --seed and its name alone.
"""

import argparse
import dataclasses
import math
import os
import sys
import zlib

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType
WEIGHT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1 and later: long wavelengths are divided by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclasses.dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    context: int
    rope_base: float
    tied: bool
    pre_tokenizer: str
    scaling: Llama3Scaling | None = None


SHAPES = {
    "llama-3.2-1b": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, head_size=64, ffn=8192, vocab=128256,
                          context=131072, rope_base=500000.0, tied=True, pre_tokenizer="llama-bpe",
                          scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192)),
    "llama-3.2-3b": Shape(hidden=3072, layers=28, heads=24, kv_heads=8, head_size=128, ffn=8192, vocab=128256,
                          context=131072, rope_base=500000.0, tied=True, pre_tokenizer="llama-bpe",
                          scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192)),
    "smollm2-135m": Shape(hidden=576, layers=30, heads=9, kv_heads=3, head_size=64, ffn=1536, vocab=49152,
                          context=8192, rope_base=100000.0, tied=True, pre_tokenizer="smollm"),
    "tiny": Shape(hidden=256, layers=2, heads=4, kv_heads=2, head_size=64, ffn=512, vocab=1024, context=2048,
                  rope_base=10000.0, tied=False, pre_tokenizer="smollm"),
}

# Name: (the file's general.file_type, type of most matrices, type of the embedding and the head).
QUANTS = {
    "f16": (gguf.LlamaFileType.MOSTLY_F16, Type.F16, Type.F16),
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, Type.Q8_0, Type.Q8_0),
    "q4_0": (gguf.LlamaFileType.MOSTLY_Q4_0, Type.Q4_0, Type.Q8_0),
    "q4_1": (gguf.LlamaFileType.MOSTLY_Q4_1, Type.Q4_1, Type.Q8_0),
    "q6_k": (gguf.LlamaFileType.MOSTLY_Q6_K, Type.Q6_K, Type.Q6_K),
    "q4_k_m": (gguf.LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K, Type.Q6_K),
    "q5_k_m": (gguf.LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K, Type.Q6_K),
}
MIXED_QUANTS = ("q4_k_m", "q5_k_m")  # these keep attn_v and ffn_down of half of the layers in Q6_K

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also did many off before must well back through years much where your way down should because long each
just state those people too good very make world still see own work men day get here between both life being under three
never know same last another while us might great go come since against right came take used himself few house use place
during high without again home around small however found thought went say part once general upon school every does got
number course war until always away something fact water less though public put think almost hand enough took""".split()


# ---- Weights ----


def halves(rng, count, typical):
    """Scales as half floats: within a fifth of `typical`."""
    return (typical * rng.uniform(0.8, 1.2, count)).astype(np.float16).view(np.uint8).reshape(count, 2)


def random_bytes(rng, rows, cols):
    return np.frombuffer(rng.bytes(rows * cols), dtype=np.uint8).reshape(rows, cols)


def uniform_std(levels):
    """Standard deviation of a uniform integer out of `levels`."""
    return math.sqrt((levels * levels - 1) / 12)


def packed_scales(rng, count):
    """Six-bit scales of 8 sub-blocks, and minima equal to them, in the 12 bytes of a K block."""
    scales = rng.integers(32, 64, (count, 8), dtype=np.uint8)
    low, high = scales[:, :4], scales[:, 4:]
    first = low | (high >> 4) << 6
    return np.concatenate([first, first, (high & 15) | (high & 15) << 4], axis=1)


SCALE_RMS = math.sqrt(sum(s * s for s in range(32, 64)) / 32)


def make_q4_0(rng, count):
    # Codes are 0..15 less 8, so their mean is -1/2: the signs of the scales cancel it.
    d = halves(rng, count, WEIGHT_STD / uniform_std(16))
    d[:, 1] |= rng.integers(0, 2, count, dtype=np.uint8) << 7
    return np.concatenate([d, random_bytes(rng, count, 16)], axis=1)


def make_q4_1(rng, count):
    d = halves(rng, count, WEIGHT_STD / uniform_std(16))
    m = (-7.5 * d.view(np.float16).astype(np.float32)).astype(np.float16).view(np.uint8)
    return np.concatenate([d, m, random_bytes(rng, count, 16)], axis=1)


def make_q8_0(rng, count):
    d = halves(rng, count, WEIGHT_STD / uniform_std(255))
    codes = rng.integers(-127, 128, (count, 32), dtype=np.int8)  # quantisers never write -128
    return np.concatenate([d, codes.view(np.uint8)], axis=1)


def make_k(levels, code_bytes):
    def make(rng, count):
        d = halves(rng, count, WEIGHT_STD / (uniform_std(levels) * SCALE_RMS))
        # The minimum is the middle of the codes, so that the mean is 0.
        middle = (levels - 1) / 2
        dmin = (middle * d.view(np.float16).astype(np.float32)).astype(np.float16).view(np.uint8)
        return np.concatenate([d, dmin, packed_scales(rng, count), random_bytes(rng, count, code_bytes)], axis=1)

    return make


def make_q6_k(rng, count):
    # Codes are 0..63 less 32, so their mean is -1/2: the signs of the scales cancel it.
    sizes = rng.integers(32, 64, (count, 16), dtype=np.int8)
    scales = np.where(rng.integers(0, 2, (count, 16), dtype=np.int8) == 0, sizes, -sizes)
    d = halves(rng, count, WEIGHT_STD / (uniform_std(64) * SCALE_RMS))
    return np.concatenate([random_bytes(rng, count, 192), scales.view(np.uint8), d], axis=1)


def make_f16(rng, count):
    return (rng.standard_normal(count, dtype=np.float32) * WEIGHT_STD).astype(np.float16).view(np.uint8)


MAKERS = {Type.F16: make_f16, Type.Q4_0: make_q4_0, Type.Q4_1: make_q4_1, Type.Q8_0: make_q8_0,
          Type.Q4_K: make_k(16, 128), Type.Q5_K: make_k(32, 160), Type.Q6_K: make_q6_k}


def rope_freqs(shape):
    """What each RoPE frequency is divided by (the tensor rope_freqs.weight)."""
    scaling = shape.scaling
    factors = []
    for pair in range(shape.head_size // 2):
        wavelength = 2 * math.pi * shape.rope_base ** (2 * pair / shape.head_size)
        turns = scaling.original_context / wavelength
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        factors.append(1.0 / ((1.0 - kept) / scaling.factor + kept))
    return np.array(factors, dtype=np.float32)


def more_bits(layer, layers):
    """The layers whose attn_v and ffn_down a mixed K quantisation keeps in Q6_K: the outer ones and every third."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def tensor_list(shape, quant):
    """(name, rows, cols, type) of every tensor in file order; rows 0 for a vector."""
    _, most, outer = QUANTS[quant]
    q_cols, kv_cols = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    tensors = [("token_embd.weight", shape.vocab, shape.hidden, outer)]
    tensors.append(("output_norm.weight", 0, shape.hidden, Type.F32))
    if not shape.tied:
        tensors.append(("output.weight", shape.vocab, shape.hidden, outer))
    if shape.scaling is not None:
        tensors.append(("rope_freqs.weight", 0, shape.head_size // 2, Type.F32))
    for layer in range(shape.layers):
        wide = Type.Q6_K if quant in MIXED_QUANTS and more_bits(layer, shape.layers) else most
        for name, rows, cols, kind in (
            ("attn_norm", 0, shape.hidden, Type.F32),
            ("attn_q", q_cols, shape.hidden, most),
            ("attn_k", kv_cols, shape.hidden, most),
            ("attn_v", kv_cols, shape.hidden, wide),
            ("attn_output", shape.hidden, q_cols, most),
            ("ffn_norm", 0, shape.hidden, Type.F32),
            ("ffn_gate", shape.ffn, shape.hidden, most),
            ("ffn_up", shape.ffn, shape.hidden, most),
            ("ffn_down", shape.hidden, shape.ffn, wide),
        ):
            tensors.append((f"blk.{layer}.{name}.weight", rows, cols, kind))
    return tensors


def tensor_values(name, rows, cols, kind, shape, seed):
    """A tensor's bytes, (rows, bytes of a row); a vector's floats."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    if name == "rope_freqs.weight":
        return rope_freqs(shape)
    if rows == 0:  # norms
        return rng.uniform(0.8, 1.2, cols).astype(np.float32)
    block_elems, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return np.ascontiguousarray(MAKERS[kind](rng, rows * cols // block_elems)).reshape(rows, -1)


# ---- Tokenizer ----


def byte_symbols():
    """The character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return symbols


def make_tokenizer(vocab):
    """(tokens, types, merges, bos, eos): all bytes, some English words, filler, control tokens at the end."""
    symbols = byte_symbols()
    tokens = [symbols[byte] for byte in range(256)]
    known = set(tokens)
    merges = []
    control = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    room = vocab - len(control)
    for word in WORDS:
        # Left to right, then the space before it: "t h", "th e", "Ġ the".
        pairs = [(word[:end], word[end]) for end in range(1, len(word))] + [(symbols[32], word)]
        for left, right in pairs:
            if left + right in known or len(tokens) >= room:
                continue
            merges.append(f"{left} {right}")
            tokens.append(left + right)
            known.add(left + right)
    # No merge leads to these, so encoding never makes them; a model may still choose them.
    tokens += [f"{symbols[32]}w{index:06d}" for index in range(room - len(tokens))]
    types = [gguf.TokenType.NORMAL] * room + [gguf.TokenType.CONTROL] * len(control)
    return tokens + control, types, merges, room, room + control.index("<|eot_id|>")


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")


# ---- The file ----


def add_metadata(writer, shape, name, quant):
    writer.add_name(f"Random weights in the shape of {name}")
    writer.add_file_type(QUANTS[quant][0])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    tokens, types, merges, bos, eos = make_tokenizer(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def check_blocks(tensors, shape_name, quant):
    for name, rows, cols, kind in tensors:
        block_elems = gguf.GGML_QUANT_SIZES[kind][0]
        if cols % block_elems != 0:
            sys.exit(f"{shape_name} cannot be {quant}: {name} has {cols} columns, {kind.name} needs a multiple of "
                     f"{block_elems}")


def write_model(path, shape_name, quant, seed):
    shape = SHAPES[shape_name]
    tensors = tensor_list(shape, quant)
    check_blocks(tensors, shape_name, quant)
    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer, shape, shape_name, quant)
    for name, rows, cols, kind in tensors:
        block_elems, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        elements = max(rows, 1) * cols
        dims = (rows, cols) if rows > 0 else (cols,)
        writer.add_tensor_info(name, dims, np.dtype(np.float32), elements // block_elems * block_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, rows, cols, kind in tensors:
        writer.write_tensor_data(tensor_values(name, rows, cols, kind, shape, seed))
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--quant", choices=sorted(QUANTS), default="q4_k_m")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, metavar="FILE.gguf")
    args = parser.parse_args()
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    partial = args.out + ".partial"
    write_model(partial, args.shape, args.quant, args.seed)
    os.replace(partial, args.out)
    print(f"{args.out}: {os.path.getsize(args.out) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
