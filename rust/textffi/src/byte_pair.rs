//! Byte-level BPE (GPT-2 and its heirs): words cut by the pre-tokenizer, spelled in the byte alphabet, merged by the
//! `tokenizers` crate. Word by word, so that a long text needs little more memory than its ids.

use tokenizers::models::bpe::{Vocab, BPE};
use tokenizers::Model;

use crate::error::{Code, Error, Result};
use crate::pre_tokenizer::PreTokenizer;
use crate::vocab::{VocabData, CONTROL, UNKNOWN};

pub struct BytePair {
    pre: PreTokenizer,
    model: BPE,
    /// How each byte is spelled in tokens.
    alphabet: [char; 256],
}

impl BytePair {
    pub fn new(vocab: &VocabData) -> Result<BytePair> {
        let pre = PreTokenizer::by_name(vocab.pre)?;
        let mut ids = Vocab::with_capacity(vocab.len());
        for id in 0..vocab.len() {
            // What is no text stays out, so that no sequence of merges can spell it.
            if ![CONTROL, UNKNOWN].contains(&vocab.kind(id)) && !vocab.token(id)?.is_empty() {
                ids.insert(vocab.token(id)?.to_owned(), id as u32);
            }
        }
        let mut merges = Vec::with_capacity(vocab.merges_len());
        for index in 0..vocab.merges_len() {
            let merge = vocab.merge(index)?;
            // Tokens hold no plain space, so the first one past the first byte parts left from right.
            let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            let Some((left, right)) = cut.map(|at| (&merge[..at], &merge[at + 1..])) else {
                return Err(Error::corrupt(format!("merge {index} is not two tokens with a space between")));
            };
            for part in [left, right] {
                if !ids.contains_key(part) {
                    return Err(Error::corrupt(format!("merge {index}: '{part}' is not a token of the vocabulary")));
                }
            }
            if !ids.contains_key(&[left, right].concat()) {
                let both = format!("{left}{right}");
                return Err(Error::corrupt(format!(
                    "merge {index}: its result '{both}' is not a token of the vocabulary"
                )));
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            // Words are short and merged in microseconds; a cache would only hold memory and a lock.
            .cache_capacity(0)
            .ignore_merges(pre.whole_words)
            .build()
            .map_err(|e| Error::corrupt(format!("merges: {e}")))?;
        Ok(BytePair { pre, model, alphabet: byte_alphabet() })
    }

    /// Appends the ids of `text` (no control tokens in it).
    pub fn encode(&self, text: &str, out: &mut Vec<i32>) -> Result<()> {
        let mut word = String::new();
        self.pre.words(text, &mut |bytes| {
            word.clear();
            word.extend(bytes.bytes().map(|b| self.alphabet[b as usize]));
            let tokens = self.model.tokenize(&word).map_err(|e| Error::new(Code::Corrupt, e.to_string()))?;
            out.extend(tokens.iter().map(|token| token.id as i32));
            Ok(())
        })
    }
}

/// Bytes that print stand for themselves, the 68 others for U+0100 onward, in their order.
fn byte_alphabet() -> [char; 256] {
    let mut hidden = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        b @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => b as char,
        _ => hidden.next().unwrap_or_default(),
    })
}
