#!/usr/bin/env python3
"""Makes smollm2.golden.gguf: what the reference implementation (transformers, f32) computes with the default model over
the first 8000 tokens of moby_dick.txt. README.md says what is in it. Needs 4 GiB of memory and about ten minutes on two
cores.

    ~/.golden/bin/python tests/golden/make_smollm2.py            # venv: see make_models.py
    ~/.golden/bin/python tests/golden/make_smollm2.py --check    # compares with what is committed

The reference runs over the weights that the file's blocks decode to. A plain float64 forward of the same equations,
written out below, runs beside it: how far the two lie apart is what f32 rounding alone costs, and the base of the
tests' tolerances.
"""
import argparse
import hashlib
import os
import sys

import gguf
import numpy as np
import tokenizers
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "../../models/SmolLM2-135M-Instruct.Q4_1.gguf")
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEXT = os.path.join(HERE, "moby_dick.txt")
TOKENS = 8000
CHUNK = 500
POSITIONS = [0, 1, 16, 127, 510, 999, 2046, 4095, 5999, 7999]  # logits after 1, 2, 17 ... 8000 tokens
TOP = 20
PERPLEXITY_TOKENS = [1024, 4096]
LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD, VOCAB, THETA, EPS = 30, 576, 1536, 9, 3, 64, 49152, 100000.0, 1e-5


def load(path):
    """-> the reader, and every tensor's f32 values by GGUF name."""
    digest = hashlib.sha256(open(path, "rb").read()).hexdigest()
    if digest != MODEL_SHA256:
        raise SystemExit(f"{path}: SHA-256 is {digest}, not that of the default model")
    reader = gguf.GGUFReader(path)
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    for name in values:
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
        if heads:  # from neighbouring rotation pairs to transformers' halves
            rows = values[name].reshape(heads, HEAD // 2, 2, HIDDEN)
            values[name] = rows.swapaxes(1, 2).reshape(heads * HEAD, HIDDEN)
    return reader, {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in values.items()}


def encode(reader, text):
    """Token ids by the model's own vocabulary: digits one by one, then GPT-2's byte-level splitting."""
    field = lambda key: reader.fields[key].contents()
    vocab = {t: i for i, t in enumerate(field("tokenizer.ggml.tokens"))}
    merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
    t = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    pre = tokenizers.pre_tokenizers
    t.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    return t.encode(text).ids


def reference(w):
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=8192, rms_norm_eps=EPS,
        rope_theta=THETA, tie_word_embeddings=True)
    config._attn_implementation = "sdpa"
    names = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {"model.embed_tokens.weight": w["token_embd.weight"], "lm_head.weight": w["token_embd.weight"],
             "model.norm.weight": w["output_norm.weight"]}
    for i in range(LAYERS):
        for ours, theirs in names.items():
            state[f"model.layers.{i}.{theirs}.weight"] = w[f"blk.{i}.{ours}.weight"]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(state)
    cache = transformers.DynamicCache()
    return lambda ids, _: model(ids[None], past_key_values=cache, use_cache=True).logits[0]


class Exact:
    """The same equations in float64, one chunk after another."""

    def __init__(self, w):
        self.w = {k: v.double() for k, v in w.items()}
        empty = torch.empty(KV_HEADS, 0, HEAD, dtype=torch.float64)
        self.k, self.v = [empty] * LAYERS, [empty] * LAYERS
        self.frequency = THETA ** (-torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)

    def norm(self, x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.w[name]

    def rotate(self, x, positions):  # x: (heads, tokens, head)
        angle = positions[:, None].double() * self.frequency
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def __call__(self, ids, start):
        positions = torch.arange(start, start + len(ids))
        hide = torch.arange(start + len(ids)) > positions[:, None]
        x = self.w["token_embd.weight"][ids]
        for i in range(LAYERS):
            part = lambda h, name: h @ self.w[f"blk.{i}.{name}.weight"].T
            split = lambda h: h.view(len(ids), -1, HEAD).transpose(0, 1)
            h = self.norm(x, f"blk.{i}.attn_norm.weight")
            q = self.rotate(split(part(h, "attn_q")), positions)
            self.k[i] = torch.cat([self.k[i], self.rotate(split(part(h, "attn_k")), positions)], 1)
            self.v[i] = torch.cat([self.v[i], split(part(h, "attn_v"))], 1)
            o = torch.empty_like(q)
            for head in range(HEADS):
                kv = head // (HEADS // KV_HEADS)
                scores = (q[head] @ self.k[i][kv].T / HEAD**0.5).masked_fill(hide, -torch.inf)
                o[head] = scores.softmax(-1) @ self.v[i][kv]
            x = x + part(o.transpose(0, 1).reshape(len(ids), -1), "attn_output")
            h = self.norm(x, f"blk.{i}.ffn_norm.weight")
            x = x + part(torch.nn.functional.silu(part(h, "ffn_gate")) * part(h, "ffn_up"), "ffn_down")
        return self.norm(x, "output_norm.weight") @ self.w["token_embd.weight"].T


@torch.no_grad()
def run(forward, ids, label):
    """-> logits at POSITIONS (positions, vocab) in f64, and the negative log-likelihood of each next token (nats)."""
    rows, losses = [], []
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start:start + CHUNK]
        logits = forward(chunk, start).double()
        rows += [logits[p - start] for p in POSITIONS if start <= p < start + len(chunk)]
        target = ids[start + 1:start + len(chunk) + 1]
        picked = logits[:len(target)].gather(1, target[:, None])[:, 0]
        losses.append(logits[:len(target)].logsumexp(-1) - picked)
        print(f"\r{label}: {start + len(chunk)} of {len(ids)} tokens", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return torch.stack(rows), torch.cat(losses)


def write(path, ids, logits, losses, exact_logits, exact_losses):
    top = logits.topk(TOP)
    apart = (top.values - exact_logits.gather(1, top.indices)).abs()
    mean_loss = lambda loss: [float(loss[:n - 1].mean()) for n in PERPLEXITY_TOKENS]
    writer = gguf.GGUFWriter(path, "golden")
    writer.add_name("reference values of SmolLM2-135M-Instruct.Q4_1")
    writer.add_string("golden.made_with", f"transformers {transformers.__version__}, torch {torch.__version__}")
    writer.add_string("golden.model_sha256", MODEL_SHA256)
    writer.add_array("golden.tokens", ids.tolist())
    writer.add_array("golden.positions", POSITIONS)
    writer.add_array("golden.top_ids", top.indices.flatten().tolist())
    writer.add_array("golden.loss_tokens", PERPLEXITY_TOKENS)
    writer.add_array("golden.loss", mean_loss(losses))
    writer.add_array("golden.loss_exact", mean_loss(exact_losses))
    writer.add_tensor("top_logits", top.values.float().numpy())
    writer.add_tensor("top_logits_exact", exact_logits.gather(1, top.indices).float().numpy())
    writer.add_tensor("logsumexp", logits.logsumexp(-1).float().numpy())
    writer.add_tensor("logits_max_abs", logits.abs().amax(-1).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print("f32 from f64, largest of the top logits by position:", [f"{a:.1e}" for a in apart.amax(-1).tolist()])
    print("largest logit:", [f"{a:.1f}" for a in logits.abs().amax(-1).tolist()])
    print("loss:", mean_loss(losses), "in f64:", mean_loss(exact_losses))


def same(a, b):
    a, b = gguf.GGUFReader(a), gguf.GGUFReader(b)
    exact = lambda r: {k: f.contents() for k, f in r.fields.items() if k != "golden.made_with" and "loss" not in k}
    loss = lambda r: np.array(r.fields["golden.loss"].contents())
    return exact(a) == exact(b) and np.allclose(loss(a), loss(b), rtol=1e-5) and all(
        s.name == t.name and np.allclose(s.data, t.data, rtol=1e-4, atol=1e-3)
        for s, t in zip(a.tensors, b.tensors, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", default=os.path.join(HERE, "smollm2.golden.gguf"))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the committed file differs")
    args = parser.parse_args()
    reader, w = load(args.model)
    ids = encode(reader, open(TEXT, encoding="utf-8").read())
    if len(ids) < TOKENS:
        raise SystemExit(f"{TEXT}: {len(ids)} tokens, {TOKENS} are needed")
    ids = torch.tensor(ids[:TOKENS])
    results = run(reference(w), ids, "reference") + run(Exact(w), ids, "exact")
    out = args.out + ".new" if args.check else args.out
    write(out, ids, *results)
    if not args.check:
        return 0
    equal = same(out, args.out)
    os.remove(out)
    print("the file is as committed" if equal else "the file differs")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
