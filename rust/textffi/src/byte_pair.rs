//! Byte-level BPE (GPT-2 and its heirs): words cut by the pre-tokenizer, their bytes merged by rank.
//!
//! The model of the `tokenizers` crate holds each token twice as a string and takes 660 ms and 52 MiB for the
//! vocabulary of Llama 3, of which most is never looked at again. What merging needs is this table of pairs.

use std::cmp::Reverse;

use ahash::AHashMap;

use crate::error::{Error, Result};
use crate::merge::Merger;
use crate::pre_tokenizer::PreTokenizer;
use crate::vocab::{VocabData, CONTROL, UNKNOWN};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

pub struct BytePair {
    pre: PreTokenizer,
    /// Token of each single byte, or `NONE`: such bytes are dropped, as the reference does.
    bytes: [u32; 256],
    /// What two neighbouring tokens merge to.
    merges: AHashMap<(u32, u32), Merge>,
    /// Tokens by their bytes, where a word that is a token of its own is not taken apart; else empty.
    words: AHashMap<Box<[u8]>, u32>,
}

impl BytePair {
    pub fn new(vocab: &VocabData) -> Result<BytePair> {
        let pre = PreTokenizer::by_name(vocab.pre)?;
        let mut ids: AHashMap<&str, u32> = AHashMap::with_capacity(vocab.len());
        for id in 0..vocab.len() {
            // What is no text stays out, so that no sequence of merges can spell it.
            let token = vocab.token(id)?;
            if ![CONTROL, UNKNOWN].contains(&vocab.kind(id)) && !token.is_empty() {
                ids.insert(token, id as u32);
            }
        }
        let merges = read_merges(vocab, &ids)?;
        let alphabet = byte_alphabet();
        let bytes = alphabet.map(|c| ids.get(c.encode_utf8(&mut [0; 4]) as &str).copied().unwrap_or(NONE));
        let mut words = AHashMap::new();
        if pre.whole_words {
            let byte_of: AHashMap<char, u8> = alphabet.into_iter().zip(0..=255).collect();
            for (token, id) in ids {
                // Tokens outside the alphabet are no word's spelling.
                if let Some(word) = token.chars().map(|c| byte_of.get(&c).copied()).collect::<Option<Box<[u8]>>>() {
                    words.insert(word, id);
                }
            }
        }
        Ok(BytePair { pre, bytes, merges, words })
    }

    /// Appends the ids of `text` (no control tokens in it, below 4 GiB).
    pub fn encode(&self, text: &str, out: &mut Vec<i32>) {
        let mut merger = Merger::new();
        self.pre.words(text, &mut |word| {
            if let Some(&id) = self.words.get(word.as_bytes()) {
                out.push(id as i32);
                return;
            }
            merger.clear();
            for (at, byte) in word.bytes().enumerate() {
                if self.bytes[byte as usize] != NONE {
                    merger.push(at, 1, self.bytes[byte as usize]);
                }
            }
            merger.run(|left, right| {
                let merge = self.merges.get(&(left.id, right.id))?;
                Some((Reverse(merge.rank), merge.id))
            });
            out.extend(merger.symbols().map(|symbol| symbol.id as i32));
        });
    }
}

fn read_merges(vocab: &VocabData, ids: &AHashMap<&str, u32>) -> Result<AHashMap<(u32, u32), Merge>> {
    let mut merges = AHashMap::with_capacity(vocab.merges_len());
    let mut joined = String::new();
    for index in 0..vocab.merges_len() {
        let merge = vocab.merge(index)?;
        // Tokens hold no plain space, so the first one past the first character parts left from right.
        let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let Some((left, right)) = cut.map(|at| (&merge[..at], &merge[at + 1..])) else {
            return Err(Error::corrupt(format!("merge {index} is not two tokens with a space between")));
        };
        let id_of = |part: &str| {
            ids.get(part)
                .copied()
                .ok_or_else(|| Error::corrupt(format!("merge {index}: '{part}' is not a token of the vocabulary")))
        };
        let pair = (id_of(left)?, id_of(right)?);
        joined.clear();
        joined.extend([left, right]);
        let Some(&id) = ids.get(joined.as_str()) else {
            let message = format!("merge {index}: its result '{joined}' is not a token of the vocabulary");
            return Err(Error::corrupt(message));
        };
        merges.insert(pair, Merge { rank: index as u32, id });
    }
    Ok(merges)
}

/// How tokens spell bytes: those that print stand for themselves, the 68 others for U+0100 onward, in their order.
fn byte_alphabet() -> [char; 256] {
    let mut hidden = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        b @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => b as char,
        _ => hidden.next().unwrap_or_default(),
    })
}
