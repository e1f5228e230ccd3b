#!/usr/bin/env python3
"""Measures TinyServe beside peer engines on one GGUF model, on this machine, in one run.

Set up once, outside the repository (about ten minutes on two cores; everything comes from the Python package index, and
llama.cpp is compiled for this machine's processor):

    python3 -m venv ~/.peers
    ~/.peers/bin/pip install numpy openvino-genai
    CMAKE_BUILD_PARALLEL_LEVEL=2 ~/.peers/bin/pip install --no-binary llama-cpp-python llama-cpp-python

Run:

    ~/.peers/bin/python bench/peers.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf
    ~/.peers/bin/python bench/peers.py --model M.gguf --prefill 512 --depth 0,4096 --batch 1,8 \\
        --engines tinyserve,llama.cpp+fa,llama.cpp+nofa,llama.cpp+fa+unified --json peers.jsonl

Engines, as --engines takes them (a comma between two, parts joined by +):
    tinyserve              `tinyserve bench` of --tinyserve, which reads every key
             +default      or those that the preset `default` selects
    llama.cpp+fa|+nofa     with or without flash attention
             +q8kv         with its KV cache in q8_0 (needs +fa); f16 otherwise
             +unified      several sequences in one shared KV buffer; a buffer for each otherwise
    openvino[+u8kv]        OpenVINO GenAI, KV cache as it chooses, or u8; batch 1 only

How it measures: in each of --repeat rounds every engine runs once, alone, in a process of its own that loads the
model, warms up and times every case; so the engines take turns and a drift of the machine's speed touches all of them.
A case is a prefill of N tokens at depth 0, or a decode of --decode steps after D tokens of context, for B sequences
that share nothing (tokens per second count all of them). The figures are medians over the rounds, with the smallest and
the largest. A case that does not fit the model's context is skipped. OpenVINO's decode at depth 0 starts from 16
tokens.

Prints a Markdown table; --json FILE (- for standard output) adds one line a case, in the form of `tinyserve bench`.
"""
import argparse
import collections
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA_BATCH_TOKENS = 2048
OPENVINO_CACHE_GIB = 2
CASE_KEYS = ("kind", "tokens", "depth", "batch")


def cases(args, context):
    """(kind, tokens, depth, batch) that fit into `context` tokens a sequence, in the order in which they are run."""
    for n in args.prefill:
        if n <= context:
            yield "prefill", n, 0, 1
    for batch in args.batch:
        for depth in sorted(args.depth):
            if depth + args.decode <= context:
                yield "decode", args.decode, depth, batch


def report(kind, tokens, depth, batch, seconds):
    """One measured case of this worker, as a JSON line for the parent."""
    print(json.dumps(dict(kind=kind, tokens=tokens, depth=depth, batch=batch,
                          tokens_per_s=tokens * batch / seconds)), flush=True)


class LlamaCpp:
    """One llama.cpp context that holds `batch` sequences, fed with random tokens."""

    def __init__(self, lib, model, args, options, batch, tokens):
        self.lib, self.batch = lib, batch
        p = lib.llama_context_default_params()
        p.n_seq_max, p.kv_unified = batch, "unified" in options
        p.n_ctx = batch * (tokens + 256)  # room for its own padding
        p.n_batch, p.n_ubatch = LLAMA_BATCH_TOKENS, 512
        p.n_threads = p.n_threads_batch = args.threads
        flash = "DISABLED" if "nofa" in options else "ENABLED"
        p.flash_attn_type = getattr(lib, "LLAMA_FLASH_ATTN_TYPE_" + flash)
        if "q8kv" in options:
            p.type_k = p.type_v = lib.GGML_TYPE_Q8_0
        self.context = lib.llama_init_from_model(model, p)
        if not self.context:
            raise SystemExit(f"llama.cpp refuses a context of {p.n_ctx} tokens with options {sorted(options)}")
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.random = random.Random(1)
        self.buffer = lib.llama_batch_init(LLAMA_BATCH_TOKENS, 0, 1)

    def close(self):
        self.lib.llama_batch_free(self.buffer)
        self.lib.llama_free(self.context)

    def decode(self, rows):
        """Runs rows of (sequence, position, wants logits), at most LLAMA_BATCH_TOKENS of them."""
        b = self.buffer
        b.n_tokens = len(rows)
        for i, (sequence, position, logits) in enumerate(rows):
            b.token[i] = self.random.randrange(100, self.vocab)
            b.pos[i], b.n_seq_id[i], b.logits[i] = position, 1, logits
            b.seq_id[i][0] = sequence
        if self.lib.llama_decode(self.context, b):
            raise SystemExit("llama_decode failed")
        self.lib.llama_synchronize(self.context)

    def prefill(self, start, end):
        for first in range(start, end, LLAMA_BATCH_TOKENS):
            last = min(first + LLAMA_BATCH_TOKENS, end)
            self.decode([(0, p, p + 1 == end) for p in range(first, last)])

    def copy_to_all(self):
        """Gives every other sequence a copy of its own of sequence 0's cache: bytes that share nothing, sooner than
        computing them."""
        size = self.lib.llama_state_seq_get_size(self.context, 0)
        state = (self.lib.ctypes.c_uint8 * size)()
        if self.lib.llama_state_seq_get_data(self.context, state, size, 0) != size:
            raise SystemExit("llama_state_seq_get_data failed")
        for sequence in range(1, self.batch):
            self.lib.llama_memory_seq_rm(self.memory, sequence, 0, -1)
            if not self.lib.llama_state_seq_set_data(self.context, state, size, sequence):
                raise SystemExit("llama_state_seq_set_data failed")

    def truncate(self, depth):
        for sequence in range(self.batch):
            self.lib.llama_memory_seq_rm(self.memory, sequence, depth, -1)

    def time_decode(self, depth, steps):
        start = time.perf_counter()
        for position in range(depth, depth + steps):
            self.decode([(s, position, True) for s in range(self.batch)])
        return time.perf_counter() - start


def run_llama_cpp(args, options):
    import llama_cpp as lib
    lib.llama_backend_init()
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    model = lib.llama_model_load_from_file(args.model.encode(), lib.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {args.model}")
    wanted = list(cases(args, lib.llama_model_n_ctx_train(model)))
    for batch in sorted({c[3] for c in wanted}):
        mine = [c for c in wanted if c[3] == batch]
        engine = LlamaCpp(lib, model, args, options, batch, max(n + d for _, n, d, _ in mine))
        engine.prefill(0, 64)
        engine.truncate(0)
        filled = 0
        for kind, tokens, depth, _ in mine:
            if kind == "prefill":
                start = time.perf_counter()
                engine.prefill(0, tokens)
                report(kind, tokens, 0, 1, time.perf_counter() - start)
                engine.truncate(0)
                continue
            engine.prefill(filled, depth)
            filled = depth
            engine.copy_to_all()
            engine.time_decode(depth, 4)
            engine.truncate(depth)
            report(kind, tokens, depth, batch, engine.time_decode(depth, tokens))
            engine.truncate(depth)
        engine.close()


def run_openvino(args, options):
    import numpy as np
    import openvino as ov
    import openvino_genai as genai
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens = OPENVINO_CACHE_GIB, 512
    scheduler.enable_prefix_caching = False
    properties = {"scheduler_config": scheduler, "INFERENCE_NUM_THREADS": args.threads}
    if "u8kv" in options:
        properties["KV_CACHE_PRECISION"] = "u8"
    pipe = genai.LLMPipeline(args.model, "CPU", **properties)
    config = genai.GenerationConfig()
    config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
    rng = np.random.default_rng(1)

    def generate(prompt_tokens, new_tokens):
        config.max_new_tokens = new_tokens
        ids = rng.integers(100, args.vocab, (1, prompt_tokens)).astype(np.int64)
        return pipe.generate(ov.Tensor(ids), config).perf_metrics

    generate(64, 4)
    for kind, tokens, depth, batch in cases(args, args.context):
        if batch > 1:
            continue
        if kind == "prefill":
            report(kind, tokens, 0, 1, generate(tokens, 1).get_ttft().mean / 1e3)
        else:
            # The first new token belongs to the prompt's own pass.
            tpot = generate(max(depth, 16), tokens + 1).get_tpot().mean / 1e3
            report(kind, tokens, depth, 1, tpot * tokens)


def run_tinyserve(args, options):
    """`tinyserve bench` runs every prefill at every depth, so prefills and decodes are asked for apart."""
    join = lambda values: ",".join(map(str, values))
    wanted = []
    if args.prefill:
        wanted.append(["--prefill", join(args.prefill), "--decode", "0", "--depth", "0"])
    if args.depth and args.batch:
        wanted.append(["--prefill", "0", "--decode", str(args.decode), "--depth", join(args.depth), "--batch",
                       join(args.batch)])
    for case in wanted:
        command = [args.tinyserve, "bench", "--model", args.model, "--threads", str(args.threads), "--repeat", "1",
                   "--json", "-", "--selector", "default" if "default" in options else "full", *case]
        if args.text:
            command += ["--text", args.text]
        status = subprocess.run(command).returncode
        if status:
            raise SystemExit(status)


RUN = {"tinyserve": run_tinyserve, "llama.cpp": run_llama_cpp, "openvino": run_openvino}
OPTIONS = {"tinyserve": {"default"}, "llama.cpp": {"fa", "nofa", "q8kv", "unified"}, "openvino": {"u8kv"}}


def parse_engine(name):
    """"llama.cpp+fa+q8kv" -> ("llama.cpp", {"fa", "q8kv"}), or exits with what is allowed."""
    kind, *options = name.split("+")
    if kind not in RUN:
        raise SystemExit(f"engine '{name}': '{kind}' is unknown; allowed: {', '.join(RUN)}")
    for option in options:
        if option not in OPTIONS[kind]:
            raise SystemExit(f"engine '{name}': '+{option}' is unknown; allowed: "
                             + (", ".join(sorted(OPTIONS[kind])) or "none"))
    if {"nofa", "q8kv"} <= set(options) or {"nofa", "fa"} <= set(options):
        raise SystemExit(f"engine '{name}': +nofa goes with neither +fa nor +q8kv")
    return kind, set(options)


def model_limits(path):
    """-> (context, vocabulary size) as the file declares them; llama-cpp-python is the reader that is already here."""
    import llama_cpp as lib
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(f"{path}: not a model that llama.cpp can read")

    def metadata(key):
        text = lib.ctypes.create_string_buffer(256)
        if lib.llama_model_meta_val_str(model, key.encode(), text, len(text)) < 0:
            raise SystemExit(f"{path}: no metadata key {key}")
        return text.value.decode()

    # A model loaded for its vocabulary alone does not parse its sizes, but keeps the metadata.
    context = int(metadata(metadata("general.architecture") + ".context_length"))
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    lib.llama_model_free(model)
    return context, vocab


def measure(args, argv, samples):
    """Fills samples[case][engine] with the engines' JSON objects, one a round."""
    for number in range(args.repeat):
        for engine in args.engines:
            load = os.getloadavg()[0]
            start = time.perf_counter()
            command = [sys.executable, os.path.abspath(__file__), *argv, "--worker", engine]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    sample = json.loads(line)
                    if sample.get("kind") in ("prefill", "decode"):
                        case = tuple(sample[k] for k in CASE_KEYS)
                        samples[case][engine].append(sample)
            state = "" if done.stdout.strip() else ", measured nothing"
            state += f", exit status {done.returncode}" if done.returncode else ""
            took = time.perf_counter() - start
            print(f"round {number + 1}, {engine}: {took:.0f} s, load before it {load:.1f}{state}", file=sys.stderr)


def rate(sample):
    value = sample["tokens_per_s"]
    return value["median"] if isinstance(value, dict) else value


def summary(case, engine, rounds):
    """One JSON object out of the rounds of a case; shares and bytes that an engine reports ride along as medians."""
    rates = [rate(s) for s in rounds]
    line = dict(engine=engine, **dict(zip(CASE_KEYS, case)),
                tokens_per_s=dict(median=round(statistics.median(rates), 2), min=round(min(rates), 2),
                                  max=round(max(rates), 2)))
    for key, value in rounds[0].items():
        if key not in line:
            varies = any(s.get(key) != value for s in rounds) and isinstance(value, (int, float))
            line[key] = statistics.median(s[key] for s in rounds) if varies else value
    return line


def is_ours(engine):
    return parse_engine(engine)[0] == "tinyserve"


def table(lines, engines):
    """Markdown: a row for each case, a column for each engine, and TinyServe's ratios to the best peer of that row."""
    by_case = collections.defaultdict(dict)
    for line in lines:
        by_case[tuple(line[k] for k in CASE_KEYS)][line["engine"]] = line
    print("| tokens/s | " + " | ".join(engines) + " | TinyServe / best peer | roofline share |")
    print("|---" * (len(engines) + 3) + "|")
    for case in sorted(by_case, key=lambda c: (c[0] != "prefill", c[3], c)):  # prefills first, then by batch
        (kind, tokens, depth, batch), row = case, by_case[case]
        cells = []
        for engine in engines:
            r = row[engine]["tokens_per_s"] if engine in row else None
            cells.append(f"{r['median']:.1f} ({r['min']:.1f}–{r['max']:.1f})" if r else "")
        ours = [line for engine, line in row.items() if is_ours(engine)]
        peers = [line["tokens_per_s"]["median"] for engine, line in row.items() if not is_ours(engine)]
        ratio = ", ".join(f"{line['tokens_per_s']['median'] / max(peers):.2f}" for line in ours if peers)
        share = ", ".join(f"{line['roofline_share']:.2f}" for line in ours if "roofline_share" in line)
        name = f"prefill {tokens}" if kind == "prefill" else f"decode {tokens}, depth {depth}, batch {batch}"
        if kind == "prefill" and depth:
            name += f", depth {depth}"
        print(f"| {name} | " + " | ".join(cells) + f" | {ratio} | {share} |")


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def arguments():
    ints = lambda s: [int(x) for x in s.split(",") if x]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--tinyserve", default=os.path.join(HERE, "../build/release/tinyserve"), help="the program")
    parser.add_argument("--prefill", type=ints, default=[512, 2048, 7168],
                        help="prompt lengths in tokens; '' for none")
    parser.add_argument("--decode", type=int, default=64, help="steps of a decode case")
    parser.add_argument("--depth", type=ints, default=[0, 2048, 4096, 7168], help="tokens of context before a decode")
    parser.add_argument("--batch", type=ints, default=[1], help="sequences of a decode case")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--engines", type=lambda s: s.split(","),
                        default="tinyserve,llama.cpp+fa,llama.cpp+nofa,openvino,openvino+u8kv".split(","))
    parser.add_argument("--text", metavar="FILE",
                        help="TinyServe's prompts are parts of this text, for what a selection reads depends on it; "
                             "random tokens otherwise, as for the peers, whose speed does not")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON line a case; - for standard output")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--context", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--vocab", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("prefill", "batch"):
        if any(n < 1 for n in getattr(args, name)):
            parser.error(f"--{name}: every value must be at least 1")
    if args.decode < 1 or args.repeat < 1 or args.threads < 1 or any(d < 0 for d in args.depth):
        parser.error("--decode, --repeat and --threads must be at least 1, --depth at least 0")
    return args


def main():
    args = arguments()
    if args.worker:
        kind, options = parse_engine(args.worker)
        return RUN[kind](args, options)
    kinds = [parse_engine(engine)[0] for engine in args.engines]
    if "tinyserve" in kinds and not shutil.which(args.tinyserve):
        raise SystemExit(f"{args.tinyserve} is no program; build it, or name it with --tinyserve")
    context, vocab = model_limits(args.model)
    argv = sys.argv[1:] + ["--context", str(context), "--vocab", str(vocab)]
    samples = collections.defaultdict(lambda: collections.defaultdict(list))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure(args, argv, samples)
    except KeyboardInterrupt:
        print("interrupted: the table holds the rounds that were finished", file=sys.stderr)
    lines = [summary(case, engine, rounds) for case, row in samples.items() for engine, rounds in row.items()]
    if args.json:
        out = sys.stdout if args.json == "-" else open(args.json, "w", encoding="utf-8")
        for line in lines:
            print(json.dumps(line), file=out)
        out.flush()
    rounds = max((len(r) for row in samples.values() for r in row.values()), default=0)
    print(f"\n{processor()}, {args.threads} threads, {os.path.basename(args.model)}, medians of {rounds} rounds "
          "(smallest–largest)\n")
    table(lines, args.engines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
