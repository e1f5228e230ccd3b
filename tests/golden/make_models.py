#!/usr/bin/env python3
"""Makes the tiny random models in tests/golden/tiny and what the reference implementation (transformers, f32) computes
with them. README.md says what is in the files.

    python3 -m venv ~/.golden && ~/.golden/bin/pip install -r tests/golden/requirements.txt
    ~/.golden/bin/python tests/golden/make_models.py            # rewrites tests/golden/tiny
    ~/.golden/bin/python tests/golden/make_models.py --check    # compares with what is committed
"""
import argparse
import dataclasses
import math
import os
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as T

from tiny_vocab import END_ID, TOKENS, add_tokenizer
from tiny_weights import random_matrix

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB = len(TOKENS)  # 291: no multiple of anything a kernel might assume
GREEDY_TOKENS = 24
PROMPT_TRIES = 20
EPS = 1e-3  # large, so that a reader that ignores it is seen
# Prompt length and the positions whose rows are kept; positions past the prompt belong to the greedy continuation.
SHORT = (40, [0, 1, 2, 7, 15, 16, 17, 31, 32, 39, 40, 47, 62])
LONG = (300, [0, 63, 64, 65, 128, 255, 256, 257, 299, 300, 322])


@dataclasses.dataclass
class Case:
    name: str
    arch: str = "llama"
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head: int = 16
    ffn: int = 96
    layers: int = 3
    tied: bool = False
    theta: float = 10000.0
    rope: dict = None  # transformers' rope_scaling
    dtype: T = T.Q8_0
    seed: int = 1
    long: bool = True
    context: int = 1024


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
YARN_ATTN_FACTOR = 0.75  # GGUF's llama.rope.scaling.attn_factor, on top of YaRN's own 1 + 0.1 ln(factor)

CASES = [
    Case("llama"),
    Case("llama-tied", hidden=96, heads=3, kv_heads=1, head=32, ffn=160, layers=2, tied=True, theta=100000.0),
    Case("llama-linear", heads=2, kv_heads=1, head=32, layers=2, rope=dict(rope_type="linear", factor=4.0)),
    Case("llama-llama3", hidden=128, heads=2, kv_heads=1, head=64, ffn=128, layers=2, tied=True, theta=500000.0,
         rope=LLAMA3),
    Case("llama-yarn", heads=2, kv_heads=1, head=32, layers=2, rope=YARN),
    Case("llama-yarn-attn", heads=2, kv_heads=1, head=32, layers=2,
         rope=YARN | dict(attention_factor=YARN_ATTN_FACTOR * (1 + 0.1 * math.log(YARN["factor"])))),
    Case("mistral", head=32, layers=2, theta=1e6),  # heads * head size is not the hidden size
    Case("qwen2", arch="qwen2", tied=True, theta=1e6),
    Case("gpt2", arch="gpt2", kv_heads=4, ffn=256, tied=True, context=384),
    Case("gpt2-wide", arch="gpt2", hidden=128, heads=2, kv_heads=2, head=64, ffn=128, layers=2, tied=True, long=False,
         context=160),
] + [
    Case("llama-" + t.name.lower(), layers=2, tied=True, long=False, dtype=t)
    for t in (T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0)
] + [
    Case("llama-" + t.name.lower(), hidden=256, kv_heads=1, head=64, ffn=256, layers=1, tied=True, long=False, dtype=t)
    for t in (T.Q4_K, T.Q5_K, T.Q6_K)
]


class TinyWeights:
    """Tensors by GGUF name: `stored` for the file, `values` in f32 for the reference."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.stored, self.values = {}, {}

    def matrix(self, name, rows, cols, std, dtype):
        stored, values = random_matrix(self.rng, rows, cols, std, dtype)
        self.stored[name], self.values[name] = (stored, dtype), values

    def vector(self, name, size, mean, std):
        values = (mean + std * self.rng.standard_normal(size)).astype(np.float32)
        self.stored[name], self.values[name] = (values, T.F32), values


def make_weights(case):
    """Scales are such that attention is far from uniform and a wrong rotation, scale or bias moves the logits."""
    w = TinyWeights(case.seed)
    gpt2, qwen2 = case.arch == "gpt2", case.arch == "qwen2"
    q_rows, kv_rows = case.heads * case.head, case.kv_heads * case.head
    by_input = lambda cols, gain: gain / math.sqrt(cols)

    def norm(name):
        w.vector(name + ".weight", case.hidden, 1.0, 0.2)
        if gpt2:
            w.vector(name + ".bias", case.hidden, 0.0, 0.2)

    def linear(name, rows, cols, gain, bias):
        w.matrix(name + ".weight", rows, cols, by_input(cols, gain), case.dtype)
        if bias:
            w.vector(name + ".bias", rows, 0.0, 0.3)

    w.matrix("token_embd.weight", VOCAB, case.hidden, by_input(case.hidden, 2.0) if case.tied else 1.0, case.dtype)
    if gpt2:
        w.matrix("position_embd.weight", case.context, case.hidden, 0.25, T.F32)
    for i in range(case.layers):
        blk = f"blk.{i}."
        norm(blk + "attn_norm")
        if gpt2:
            linear(blk + "attn_qkv", q_rows + 2 * kv_rows, case.hidden, 1.5, True)
        else:
            linear(blk + "attn_q", q_rows, case.hidden, 1.5, qwen2)
            linear(blk + "attn_k", kv_rows, case.hidden, 1.5, qwen2)
            linear(blk + "attn_v", kv_rows, case.hidden, 1.0, qwen2)
        linear(blk + "attn_output", case.hidden, q_rows, 1.5, gpt2)
        norm(blk + "ffn_norm")
        if not gpt2:
            linear(blk + "ffn_gate", case.ffn, case.hidden, 1.5, False)
        linear(blk + "ffn_up", case.ffn, case.hidden, 1.5, gpt2)
        linear(blk + "ffn_down", case.hidden, case.ffn, 1.5, gpt2)
    norm("output_norm")
    if not case.tied:
        w.matrix("output.weight", VOCAB, case.hidden, by_input(case.hidden, 3.0), case.dtype)
    if case.rope and case.rope["rope_type"] == "llama3":
        factors = llama3_factors(case)
        w.stored["rope_freqs.weight"] = (factors, T.F32)
    return w


def llama3_factors(case):
    """What each rotation frequency is divided by (f32, one for each pair): 1 for short waves, `factor` for long ones,
    and between them 1 / ((1 - s) / factor + s), where s falls from 1 to 0."""
    r = case.rope
    wave = 2 * math.pi * case.theta ** (np.arange(0, case.head, 2) / case.head)
    turns = r["original_max_position_embeddings"] / wave
    s = (turns - r["low_freq_factor"]) / (r["high_freq_factor"] - r["low_freq_factor"])
    s = np.clip(s, 0, 1)
    assert (s == 0).any() and (s == 1).any() and ((s > 0) & (s < 1)).any()
    return (1 / ((1 - s) / r["factor"] + s)).astype(np.float32)


def write_model(case, weights, path):
    writer = gguf.GGUFWriter(path, case.arch)
    writer.add_name("tiny random " + case.name)
    writer.add_context_length(case.context)
    writer.add_embedding_length(case.hidden)
    writer.add_block_count(case.layers)
    writer.add_feed_forward_length(case.ffn)
    writer.add_head_count(case.heads)
    if case.arch == "gpt2":
        writer.add_layer_norm_eps(EPS)
    else:
        writer.add_head_count_kv(case.kv_heads)
        writer.add_layer_norm_rms_eps(EPS)
        writer.add_rope_dimension_count(case.head)
        writer.add_rope_freq_base(case.theta)
        writer.add_vocab_size(VOCAB)
        if case.heads * case.head != case.hidden:
            writer.add_key_length(case.head)
            writer.add_value_length(case.head)
        write_rope_scaling(case, writer)
    add_tokenizer(writer, "qwen2" if case.arch == "qwen2" else "gpt-2")
    for name, (stored, dtype) in weights.stored.items():
        writer.add_tensor(name, stored, raw_dtype=dtype)
    close(writer)


def write_rope_scaling(case, writer):
    kind = case.rope["rope_type"] if case.rope else None
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(case.rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(case.rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(case.rope["original_max_position_embeddings"])
        if "attention_factor" in case.rope:
            writer.add_rope_scaling_attn_factors(YARN_ATTN_FACTOR)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def halves_from_pairs(w, heads):
    """GGUF's llama stores a head's rows so that rotation pairs are neighbours; transformers pairs row i with row
    i + head / 2."""
    head = w.shape[0] // heads
    return w.reshape(heads, head // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def reference_config(case):
    if case.arch == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=case.context, n_embd=case.hidden, n_layer=case.layers, n_head=case.heads,
            n_inner=case.ffn, activation_function="gelu_new", layer_norm_epsilon=EPS, tie_word_embeddings=True)
    family = "mistral" if case.name == "mistral" else case.arch
    kind = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig,
            "qwen2": transformers.Qwen2Config}[family]
    extra = dict(sliding_window=None) if case.name == "mistral" else {}
    context = case.context
    if case.rope and case.rope["rope_type"] == "yarn":
        context = int(case.rope["original_max_position_embeddings"] * case.rope["factor"])
    return kind(vocab_size=VOCAB, hidden_size=case.hidden, intermediate_size=case.ffn, num_hidden_layers=case.layers,
                num_attention_heads=case.heads, num_key_value_heads=case.kv_heads, head_dim=case.head,
                max_position_embeddings=context, rms_norm_eps=EPS, rope_theta=case.theta, rope_scaling=case.rope,
                tie_word_embeddings=case.tied, **extra)


LLAMA_NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
               "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
               "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
GPT2_NAMES = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
              "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
LLAMA_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GPT2_TOP = {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f"}


def reference_state(case, values):
    """transformers' state dict out of tensors by GGUF name."""
    gpt2 = case.arch == "gpt2"
    state = {}
    for name, value in values.items():
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            target = f"transformer.h.{layer}." if gpt2 else f"model.layers.{layer}."
            target += (GPT2_NAMES if gpt2 else LLAMA_NAMES)[part]
            if case.arch == "llama" and part in ("attn_q", "attn_k"):
                value = halves_from_pairs(value, case.heads if part == "attn_q" else case.kv_heads)
            if gpt2 and kind == "weight" and value.ndim == 2:
                value = value.T  # its Conv1D holds (in, out)
        else:
            target = (GPT2_TOP if gpt2 else LLAMA_TOP)[stem]
        state[f"{target}.{kind}"] = torch.from_numpy(value.copy())
    if case.tied:
        state["lm_head.weight"] = state[("transformer.wte" if gpt2 else "model.embed_tokens") + ".weight"]
    return state


def reference_model(case, weights):
    config = reference_config(case)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(reference_state(case, weights.values), strict=False)
    missing = [m for m in missing if not m.endswith((".attn.bias", ".masked_bias"))]  # GPT-2's causal masks
    assert not missing and not unexpected, (missing, unexpected)
    return model


def hidden_layers(case):
    return sorted({0, case.layers // 2, case.layers - 1})


@torch.no_grad()
def reference_run(case, model, prompt):
    """-> greedy continuation, logits (tokens, vocab) and residual streams after the chosen layers (tokens, hidden)."""
    layers = model.transformer.h if case.arch == "gpt2" else model.model.layers
    hidden = {}
    for i in hidden_layers(case):
        layers[i]._forward_hooks.clear()
        layers[i].register_forward_hook(
            lambda _, __, out, i=i: hidden.__setitem__(i, (out[0] if isinstance(out, tuple) else out)[0].numpy().copy())
            if (out[0] if isinstance(out, tuple) else out).dim() == 3 else None)
    tokens = list(prompt)
    logits = None
    for _ in range(GREEDY_TOKENS):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt):], logits, hidden


def telling(prompt, greedy, logits):
    """Whether two implementations that agree within 1e-4 of the largest logit must agree on the text as well, and the
    text does not end early or repeat itself."""
    steps = np.sort(logits[len(prompt) - 1:])
    clear = (steps[:, -1] - steps[:, -2] > 1e-3 * np.abs(steps).max(axis=1)).all()
    return clear and END_ID not in greedy and len(set(greedy)) >= 8


def telling_run(case, model, rng, length):
    for _ in range(PROMPT_TRIES):
        prompt = [int(t) for t in rng.integers(0, END_ID, length)]
        greedy, logits, hidden = reference_run(case, model, prompt)
        if telling(prompt, greedy, logits):
            return prompt, greedy, logits, hidden
    raise SystemExit(f"{case.name}: no telling prompt of {length} tokens; choose another seed")


def write_golden(case, model, path):
    writer = gguf.GGUFWriter(path, "golden")
    writer.add_name("reference values of " + case.name)
    writer.add_string("golden.made_with", f"transformers {transformers.__version__}, torch {torch.__version__}")
    writer.add_array("golden.hidden_layers", hidden_layers(case))
    rng = np.random.default_rng(1000 + case.seed)
    runs = {"short": SHORT} | ({"long": LONG} if case.long else {})
    writer.add_array("golden.runs", list(runs))
    for run, (length, positions) in runs.items():
        prompt, greedy, logits, hidden = telling_run(case, model, rng, length)
        writer.add_array(f"golden.{run}.prompt", prompt)
        writer.add_array(f"golden.{run}.greedy", greedy)
        writer.add_array(f"golden.{run}.positions", positions)
        writer.add_tensor(f"{run}.logits", np.ascontiguousarray(logits[positions]))
        for i, h in hidden.items():
            writer.add_tensor(f"{run}.hidden.{i}", np.ascontiguousarray(h[positions]))
        print(f"  {run}: |logits| <= {np.abs(logits).max():.1f}, text {greedy[:8]} ...")
    close(writer)


def make(case, folder):
    print(case.name)
    weights = make_weights(case)
    write_model(case, weights, os.path.join(folder, case.name + ".gguf"))
    write_golden(case, reference_model(case, weights), os.path.join(folder, case.name + ".golden.gguf"))


def same_golden(a, b):
    """Equal metadata, and tensors equal but for the rounding of another machine's arithmetic."""
    a, b = gguf.GGUFReader(a), gguf.GGUFReader(b)
    fields = lambda r: {k: f.contents() for k, f in r.fields.items() if k != "golden.made_with"}
    pairs = list(zip(a.tensors, b.tensors, strict=True))
    return fields(a) == fields(b) and all(
        s.name == t.name and np.abs(s.data - t.data).max() <= 1e-5 * np.abs(t.data).max() for s, t in pairs)


def check(made, committed):
    """Names of the files that differ from what is committed."""
    wrong = sorted(set(os.listdir(made)) ^ set(os.listdir(committed)))
    for name in sorted(set(os.listdir(made)) & set(os.listdir(committed))):
        paths = os.path.join(made, name), os.path.join(committed, name)
        if name.endswith(".golden.gguf"):
            same = same_golden(*paths)
        else:
            same = open(paths[0], "rb").read() == open(paths[1], "rb").read()
        if not same:
            wrong.append(name)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the committed files differ")
    parser.add_argument("--out", default=os.path.join(HERE, "tiny"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.check:
        os.makedirs(args.out, exist_ok=True)
        for case in CASES:
            make(case, args.out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            make(case, folder)
        wrong = check(folder, args.out)
    print("differ: " + ", ".join(wrong) if wrong else "all files are as committed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
