//! SentencePiece-style BPE (Llama 1 and 2, TinyLlama, Mistral): of all neighbours that join to a piece, the pair
//! with the best score joins first, the leftmost of equals; what is no piece in the end falls back to bytes.

use std::cmp::Ordering;

use ahash::AHashMap;
use aho_corasick::AhoCorasick;

use crate::error::{Error, Result};
use crate::merge::Merger;
use crate::special::build_matcher;
use crate::vocab::{VocabData, BYTE, NORMAL, UNUSED, USER_DEFINED};

const SPACE: &str = "\u{2581}";

/// What a symbol is, for the merger: a user-defined piece joins with nothing.
const PLAIN: u32 = 0;
const FROZEN: u32 = 1;

/// Unused pieces that symbols joined to, by start and length, with the length of their left part.
type Parts = AHashMap<(u32, u32), u32>;

pub struct SentencePiece {
    /// Normal, user-defined and unused pieces. Control and byte tokens are not text, so they are not here.
    ids: AHashMap<Box<str>, u32>,
    scores: Vec<f32>,
    kinds: Vec<u8>,
    /// Id of each byte's token; absent unless the vocabulary has all 256.
    bytes: Option<Box<[i32; 256]>>,
    unknown: i32,
    piece_bytes_max: usize,
    add_space_prefix: bool,
    user_defined: Option<AhoCorasick>,
}

/// A score as the order of joining. Scores are finite (checked by the caller), so `total_cmp` orders them as numbers,
/// but for the two zeros, which count as equal.
struct Score(f32);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0 + 0.0).total_cmp(&(other.0 + 0.0))
    }
}
impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Score {}

/// The byte of a token named `<0xNN>`.
fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

impl SentencePiece {
    pub fn new(vocab: &VocabData) -> Result<SentencePiece> {
        let mut ids = AHashMap::with_capacity(vocab.len());
        let mut bytes = Box::new([-1i32; 256]);
        let mut user_defined = Vec::new();
        let mut piece_bytes_max = 0;
        for id in 0..vocab.len() {
            let token = vocab.token(id)?;
            match vocab.kind(id) {
                BYTE => match byte_of(token) {
                    Some(byte) => bytes[byte as usize] = id as i32,
                    None => {
                        return Err(Error::corrupt(format!(
                            "token {id} '{token}' has type byte but is not <0x00> to <0xFF>"
                        )))
                    }
                },
                NORMAL | USER_DEFINED | UNUSED if !token.is_empty() => {
                    if vocab.kind(id) == USER_DEFINED {
                        user_defined.push(token);
                    }
                    piece_bytes_max = piece_bytes_max.max(token.len());
                    ids.insert(token.into(), id as u32);
                }
                _ => {}
            }
        }
        let complete = bytes.iter().all(|id| *id >= 0);
        if !complete && vocab.unknown < 0 {
            return Err(Error::corrupt(
                "the vocabulary has neither an unknown token nor all 256 byte tokens, so not every text has ids",
            ));
        }
        Ok(SentencePiece {
            ids,
            scores: vocab.scores.to_vec(),
            kinds: vocab.kinds.to_vec(),
            bytes: complete.then_some(bytes),
            unknown: vocab.unknown,
            piece_bytes_max,
            add_space_prefix: vocab.add_space_prefix,
            user_defined: build_matcher(&user_defined)?,
        })
    }

    /// Appends the ids of `text` (no control tokens in it, below 4 GiB / 3: a space becomes three bytes).
    pub fn encode(&self, text: &str, out: &mut Vec<i32>) {
        if text.is_empty() {
            return;
        }
        let mut normal = String::with_capacity(text.len() + text.len() / 4 + SPACE.len());
        if self.add_space_prefix {
            normal.push_str(SPACE);
        }
        for part in text.split_inclusive(' ') {
            match part.strip_suffix(' ') {
                Some(word) => {
                    normal.push_str(word);
                    normal.push_str(SPACE);
                }
                None => normal.push_str(part),
            }
        }
        let mut merger = Merger::new();
        self.push_symbols(&normal, &mut merger);
        let mut parts = Parts::new();
        merger.run(|left, right| {
            let len = left.len + right.len;
            // The bound keeps a lookup's cost that of the longest piece, whatever has been joined already.
            if left.id == FROZEN || right.id == FROZEN || len as usize > self.piece_bytes_max {
                return None;
            }
            let start = left.start as usize;
            let &id = self.ids.get(&normal[start..start + len as usize])?;
            if self.kinds[id as usize] == UNUSED {
                parts.insert((left.start, len), left.len);
            }
            Some((Score(self.scores[id as usize]), PLAIN))
        });
        self.emit(&normal, &merger, &parts, out);
    }

    /// One symbol a character, or a user-defined piece (the leftmost, longest match).
    fn push_symbols(&self, text: &str, merger: &mut Merger<Score>) {
        let plain = |from: usize, to: usize, merger: &mut Merger<Score>| {
            for (at, c) in text[from..to].char_indices() {
                merger.push(from + at, c.len_utf8(), PLAIN);
            }
        };
        let mut done = 0;
        if let Some(matcher) = &self.user_defined {
            for found in matcher.find_iter(text) {
                plain(done, found.start(), merger);
                merger.push(found.start(), found.len(), FROZEN);
                done = found.end();
            }
        }
        plain(done, text.len(), merger);
    }

    /// The ids of the symbols that are left. An unused piece is taken apart again as it was joined.
    fn emit(&self, text: &str, merger: &Merger<Score>, parts: &Parts, out: &mut Vec<i32>) {
        let mut after_unknown = false;
        let mut stack = Vec::new();
        for symbol in merger.symbols() {
            stack.push((symbol.start, symbol.len));
            while let Some((start, len)) = stack.pop() {
                let piece = &text[start as usize..(start + len) as usize];
                let id = self.ids.get(piece);
                if let (Some(&id), Some(&left)) = (id, parts.get(&(start, len))) {
                    if self.kinds[id as usize] == UNUSED {
                        stack.push((start + left, len - left));
                        stack.push((start, left));
                        continue;
                    }
                }
                match (id, &self.bytes) {
                    (Some(&id), _) => out.push(id as i32),
                    (None, Some(bytes)) => out.extend(piece.bytes().map(|b| bytes[b as usize])),
                    // A run of unknown characters is one unknown token.
                    (None, None) if !after_unknown => out.push(self.unknown),
                    (None, None) => {}
                }
                after_unknown = id.is_none();
            }
        }
    }
}
