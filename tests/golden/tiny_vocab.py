"""The byte-level vocabulary that every tiny model carries, so that each file is a complete model."""

END = "<|endoftext|>"
MERGED = ["Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "Ġ w", "Ġ o", "e n", "Ġ c", "i t",
          "i s", "a n", "o r", "e s", "Ġ b", "e d", "Ġ f", "in g", "Ġ p", "o u", "Ġa n", "Ġan d", "a l", "a r", "Ġ m",
          "Ġt o", "Ġo f", "Ġ in", "Ġ h"]


def _byte_characters():
    """The printable stand-in of each byte, as byte-level BPE vocabularies spell them: visible Latin-1 characters stand
    for themselves, U+0100 and on for the other bytes in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return [chr(b) for b in visible] + [chr(0x100 + i) for i in range(len(hidden))]


TOKENS = _byte_characters() + [m.replace(" ", "") for m in MERGED] + [END]
END_ID = len(TOKENS) - 1
NORMAL, CONTROL = 1, 3


def add_tokenizer(writer, pre):
    """Writes the tokenizer.ggml.* keys. `pre`: name of the pre-tokenizer."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([NORMAL] * END_ID + [CONTROL])
    writer.add_token_merges(MERGED)
    writer.add_bos_token_id(END_ID)
    writer.add_eos_token_id(END_ID)
    writer.add_add_bos_token(False)
