//! SentencePiece-style BPE (Llama 1 and 2, TinyLlama, Mistral): of all neighbours that join to a piece, the pair
//! with the best score joins first, the leftmost of equals; what is no piece in the end falls back to bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use aho_corasick::AhoCorasick;

use crate::error::{Error, Result};
use crate::special::build_matcher;
use crate::vocab::{VocabData, BYTE, NORMAL, UNUSED, USER_DEFINED};

const SPACE: &str = "\u{2581}";
const NONE: u32 = u32::MAX;

pub struct SentencePiece {
    /// Normal, user-defined and unused pieces. Control and byte tokens are not text, so they are not here.
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    kinds: Vec<u8>,
    /// Id of each byte's token; absent unless the vocabulary has all 256.
    bytes: Option<Box<[i32; 256]>>,
    unknown: i32,
    piece_bytes_max: usize,
    add_space_prefix: bool,
    user_defined: Option<AhoCorasick>,
}

/// A run of the normalized text that is one symbol now; a symbol joined into its left neighbour has length 0.
struct Symbol {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
    /// A user-defined piece: joins with nothing.
    frozen: bool,
}

/// Two neighbours that would join to a piece.
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both when the pair was found: it is stale where they have changed since.
    len: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        // Scores are finite (checked at construction), so `total_cmp` orders them as numbers, but for the two
        // zeros, which count as equal.
        (self.score + 0.0).total_cmp(&(other.score + 0.0)).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

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
        let mut ids = HashMap::with_capacity(vocab.len());
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

    /// Appends the ids of `text` (no control tokens in it, below 4 GiB / 3).
    pub fn encode(&self, text: &str, out: &mut Vec<i32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
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
        if normal.len() >= NONE as usize {
            return Err(Error::corrupt("text of more than 4 GiB"));
        }
        let mut symbols = self.symbols(&normal);
        let parts = self.join(&normal, &mut symbols);
        self.emit(&normal, &symbols, &parts, out);
        Ok(())
    }

    /// One symbol a character, or a user-defined piece (the leftmost, longest match).
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut push = |start: usize, end: usize, frozen: bool| {
            let index = symbols.len() as u32;
            symbols.push(Symbol {
                start: start as u32,
                len: (end - start) as u32,
                prev: index.wrapping_sub(1),
                next: index + 1,
                frozen,
            });
        };
        let plain = |from: usize, to: usize, push: &mut dyn FnMut(usize, usize, bool)| {
            for (at, c) in text[from..to].char_indices() {
                push(from + at, from + at + c.len_utf8(), false);
            }
        };
        let mut done = 0;
        if let Some(matcher) = &self.user_defined {
            for found in matcher.find_iter(text) {
                plain(done, found.start(), &mut push);
                push(found.start(), found.end(), true);
                done = found.end();
            }
        }
        plain(done, text.len(), &mut push);
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    /// Joins pairs until none is left. Returns how joined unused pieces came about: their start and length, and
    /// the length of the left part.
    fn join(&self, text: &str, symbols: &mut [Symbol]) -> HashMap<(u32, u32), u32> {
        let mut parts = HashMap::new();
        let mut heap = BinaryHeap::with_capacity(symbols.len());
        for left in 1..symbols.len() {
            self.propose(text, symbols, left as u32 - 1, left as u32, &mut heap, &mut parts);
        }
        while let Some(pair) = heap.pop() {
            let (left, right) = (pair.left as usize, pair.right as usize);
            let (left_len, right_len) = (symbols[left].len, symbols[right].len);
            if left_len == 0 || right_len == 0 || left_len + right_len != pair.len {
                continue;
            }
            symbols[left].len = pair.len;
            symbols[right].len = 0;
            let next = symbols[right].next;
            symbols[left].next = next;
            if next != NONE {
                symbols[next as usize].prev = pair.left;
                self.propose(text, symbols, pair.left, next, &mut heap, &mut parts);
            }
            let prev = symbols[left].prev;
            if prev != NONE {
                self.propose(text, symbols, prev, pair.left, &mut heap, &mut parts);
            }
        }
        parts
    }

    fn propose(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: u32,
        right: u32,
        heap: &mut BinaryHeap<Pair>,
        parts: &mut HashMap<(u32, u32), u32>,
    ) {
        let (a, b) = (&symbols[left as usize], &symbols[right as usize]);
        let len = a.len + b.len;
        // The bound keeps a lookup's cost that of the longest piece, whatever has been joined already.
        if a.frozen || b.frozen || len as usize > self.piece_bytes_max {
            return;
        }
        let start = a.start as usize;
        let Some(&id) = self.ids.get(&text[start..start + len as usize]) else {
            return;
        };
        heap.push(Pair { score: self.scores[id as usize], left, right, len });
        if self.kinds[id as usize] == UNUSED {
            parts.insert((a.start, len), a.len);
        }
    }

    /// The ids of the symbols that are left. An unused piece is taken apart again as it was joined.
    fn emit(&self, text: &str, symbols: &[Symbol], parts: &HashMap<(u32, u32), u32>, out: &mut Vec<i32>) {
        let mut after_unknown = false;
        let mut stack = Vec::new();
        for symbol in symbols.iter().filter(|s| s.len > 0) {
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
