//! Text to ids: tokens that are spelled out are cut from the text first, the rest goes to the model.

use aho_corasick::AhoCorasick;

use crate::byte_pair::BytePair;
use crate::error::Result;
use crate::sentence_piece::SentencePiece;
use crate::special::build_matcher;
use crate::vocab::{VocabData, CONTROL, UNKNOWN, USER_DEFINED};

enum Model {
    BytePair(Box<BytePair>),
    SentencePiece(Box<SentencePiece>),
}

/// Tokens matched as spelled, and their ids in the matcher's order.
#[derive(Default)]
struct Spelled {
    matcher: Option<AhoCorasick>,
    ids: Vec<i32>,
}

impl Spelled {
    fn new(vocab: &VocabData, kinds: &[u8]) -> Result<Spelled> {
        let mut ids = Vec::new();
        let mut patterns = Vec::new();
        for id in 0..vocab.len() {
            if kinds.contains(&vocab.kind(id)) && !vocab.token(id)?.is_empty() {
                ids.push(id as i32);
                patterns.push(vocab.token(id)?);
            }
        }
        Ok(Spelled { matcher: build_matcher(&patterns)?, ids })
    }
}

pub struct Tokenizer {
    model: Model,
    /// For text that users wrote.
    plain: Spelled,
    /// For text that may hold control tokens.
    trusted: Spelled,
}

impl Tokenizer {
    pub fn new(vocab: &VocabData) -> Result<Tokenizer> {
        if vocab.sentence_piece {
            // User-defined pieces are matched inside the model, on the text with its spaces replaced.
            return Ok(Tokenizer {
                model: Model::SentencePiece(Box::new(SentencePiece::new(vocab)?)),
                plain: Spelled::default(),
                trusted: Spelled::new(vocab, &[UNKNOWN, CONTROL])?,
            });
        }
        Ok(Tokenizer {
            model: Model::BytePair(Box::new(BytePair::new(vocab)?)),
            plain: Spelled::new(vocab, &[USER_DEFINED])?,
            trusted: Spelled::new(vocab, &[UNKNOWN, CONTROL, USER_DEFINED])?,
        })
    }

    /// Bytes that are no part of a character count as U+FFFD each. REQUIRES: at most 2^30 bytes.
    pub fn encode(&self, bytes: &[u8], parse_special: bool) -> Vec<i32> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.encode_text(text, parse_special),
            Err(_) => self.encode_text(&replace_invalid(bytes), parse_special),
        }
    }

    fn encode_text(&self, text: &str, parse_special: bool) -> Vec<i32> {
        let spelled = if parse_special { &self.trusted } else { &self.plain };
        let mut out = Vec::new();
        let mut done = 0;
        if let Some(matcher) = &spelled.matcher {
            for found in matcher.find_iter(text) {
                self.encode_segment(&text[done..found.start()], &mut out);
                out.push(spelled.ids[found.pattern().as_usize()]);
                done = found.end();
            }
        }
        self.encode_segment(&text[done..], &mut out);
        out
    }

    fn encode_segment(&self, text: &str, out: &mut Vec<i32>) {
        match &self.model {
            Model::BytePair(model) => model.encode(text, out),
            Model::SentencePiece(model) => model.encode(text, out),
        }
    }
}

fn replace_invalid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for _ in chunk.invalid() {
            text.push('\u{FFFD}');
        }
    }
    text
}
