"""Writes the tiny vocabularies and what the reference tokenizers make of the corpus with them: *.golden.

    python make_tokenizers.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--check]

The reference is Hugging Face's tokenizers for byte-level vocabularies, with the published pre-tokenizers, and Google's
sentencepiece for the others. With --model also smollm2.golden, whose vocabulary is the model file's. --check compares
with what is committed instead of writing. Nothing is downloaded.
"""

import argparse
import io
import json
import pathlib
import re
import sys

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as piece_model
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import corpus

HERE = pathlib.Path(__file__).parent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_TOKENS = ["<tool>", "<tool_call>", "[a b]", "    ----"]
SWEEP_CHARS = 0x1000  # code points in one block of the sweep


def words(pattern):
    """Splits by a published pattern, then spells bytes."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
DEEPSEEK_CODER = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(p), behavior="isolated")
     for p in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")]
    + [DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

# name: pre-tokenizer, normalizer, whether a word that is a token is taken whole, whether all 256 bytes have tokens
BYTE_LEVEL = {
    "gpt-2": (GPT2, None, False, True),
    "smollm": (pre_tokenizers.Sequence([DIGITS, GPT2]), None, False, False),
    "llama-bpe": (words(CASES + "{1,3}" + REST), None, True, True),
    "qwen2": (words(CASES + REST), normalizers.NFC(), False, True),
    "tekken": (words(TEKKEN), None, True, True),
    "deepseek-coder": (DEEPSEEK_CODER, None, False, True),
}


def escape(data):
    """One word of visible ASCII."""
    return "".join(chr(b) if 0x21 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in data)


def sweep_blocks():
    """First code points of the blocks that the sweep covers: planes 0 to 3, and the ends of the others in use."""
    return [*range(0, 0x40000, SWEEP_CHARS), 0xE0000, 0xF0000, 0x10F000]


def sweep_text(first):
    """Every character of a block beside letters, digits and spaces."""
    chars = (chr(c) for c in range(first, first + SWEEP_CHARS) if not 0xD800 <= c <= 0xDFFF)
    return "".join(f"x{c}1 {c}" for c in chars)


def fingerprint(ids):
    """FNV-1a of the ids as 32-bit little-endian numbers."""
    value = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def results(encode):
    """The lines that hold what `encode(data, parse_special)` answers."""
    lines = []
    for index, (_, data) in enumerate(corpus.CORPUS):
        for parse_special in (0, 1):
            lines.append(f"ids {index} {parse_special} " + " ".join(map(str, encode(data, bool(parse_special)))))
    for first in sweep_blocks():
        ids = encode(sweep_text(first).encode(), False)
        lines.append(f"sweep {first:x} {len(ids)} {fingerprint(ids):016x}")
    return lines


def reference(model, pre_tokenizer, normalizer, control, user_defined):
    """An encode function on Hugging Face's tokenizers."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in user_defined])

    def encode(data, parse_special):
        tokenizer.encode_special_tokens = not parse_special
        return tokenizer.encode(corpus.as_text(data), add_special_tokens=False).ids

    return encode


def byte_level(name):
    pre_tokenizer, normalizer, whole_words, all_bytes = BYTE_LEVEL[name]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet if all_bytes else [])
    training = [t for t in corpus.TRAINING if all_bytes or max(t, default="") < "\U00040000" and "\x01" not in t]
    trained.train_from_iterator(training, trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(m) for m in state["merges"]]
    ids = dict(state["vocab"])
    if whole_words:
        # Tokens that no merges lead to: they count only where a whole word is taken as it is.
        for word in ("Ġprecisely", "Ġcirculation", "ĠDonau", "!!!!!", "Ġ]]"):
            ids.setdefault(word, len(ids))
    model = models.BPE(vocab=ids, merges=merges, ignore_merges=whole_words)
    tokens = [(NORMAL, t) for t, _ in sorted(ids.items(), key=lambda item: item[1])]
    tokens += [(CONTROL, t) for t in CONTROL_TOKENS] + [(USER_DEFINED, t) for t in USER_TOKENS]
    first_control = len(ids)
    lines = ["model gpt2", f"pre {name}", f"eos {first_control + 2}"]
    lines += [f"token {kind} {escape(t.encode())}" for kind, t in tokens]
    lines += [f"merge {escape(' '.join(m).encode())}" for m in merges]
    return lines + results(reference(model, pre_tokenizer, normalizer, CONTROL_TOKENS, USER_TOKENS))


def train_pieces(byte_fallback, space_prefix):
    """A sentencepiece model. Some of its pieces are marked unused, as nothing but a file can do it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(t for text in corpus.TRAINING for t in text.split("\n") if "\x00" not in t),
        model_writer=model, model_type="bpe", vocab_size=1200, byte_fallback=byte_fallback,
        character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=space_prefix, split_digits=True,
        allow_whitespace_only_pieces=True, control_symbols=CONTROL_TOKENS, user_defined_symbols=USER_TOKENS,
        num_threads=1, minloglevel=2)
    proto = piece_model.ModelProto.FromString(model.getvalue())
    normal = [p for p in proto.pieces if p.type == NORMAL and len(p.piece) > 2]
    for piece in normal[5:200:20]:
        piece.type = UNUSED
    return proto


def sentence_piece(byte_fallback, space_prefix):
    proto = train_pieces(byte_fallback, space_prefix)
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    control = {p.piece: i for i, p in enumerate(proto.pieces) if p.type in (CONTROL, UNKNOWN)}
    finder = re.compile("|".join(re.escape(t) for t in sorted(control, key=len, reverse=True)))

    def encode(data, parse_special):
        # sentencepiece knows no control tokens in text: they are cut out, and each piece between is a text of its own.
        text = corpus.as_text(data)
        ids, done = [], 0
        for found in finder.finditer(text) if parse_special else ():
            ids += processor.encode(text[done:found.start()]) + [control[found.group()]]
            done = found.end()
        return ids + processor.encode(text[done:])

    lines = ["model llama", "pre default", f"unknown {proto.trainer_spec.unk_id}", f"bos {proto.trainer_spec.bos_id}",
             f"eos {proto.trainer_spec.eos_id}", "add_bos 1", f"add_space_prefix {int(space_prefix)}"]
    lines += [f"token {p.type} {escape(p.piece.encode())} {p.score!r}" for p in proto.pieces]
    return lines + results(encode)


def smollm2(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields

    def strings(key):
        return [bytes(fields[key].parts[i]).decode() for i in fields[key].data]

    tokens = strings("tokenizer.ggml.tokens")
    kinds = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    merges = [tuple(m.split(" ")) for m in strings("tokenizer.ggml.merges")]
    model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    control = [t for t, kind in zip(tokens, kinds) if kind == CONTROL]
    return results(reference(model, BYTE_LEVEL["smollm"][0], None, control, []))


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model")
    arguments.add_argument("--check", action="store_true")
    options = arguments.parse_args()
    files = {f"{name}.golden": byte_level(name) for name in BYTE_LEVEL}
    files["llama.golden"] = sentence_piece(byte_fallback=True, space_prefix=True)
    files["llama-unknown.golden"] = sentence_piece(byte_fallback=False, space_prefix=False)
    if options.model:
        files["smollm2.golden"] = smollm2(options.model)
    files["corpus.txt"] = [f"{escape(name.encode())} {escape(data)}" for name, data in corpus.CORPUS]
    different = []
    for name, lines in files.items():
        text = "\n".join(lines) + "\n"
        if options.check:
            if (HERE / name).read_text(encoding="ascii") != text:
                different.append(name)
        else:
            (HERE / name).write_text(text, encoding="ascii")
    if different:
        sys.exit(f"differ from what is committed: {', '.join(different)}")


if __name__ == "__main__":
    main()
