//! Vocabulary data as it comes over the C boundary: borrowed for the call, nothing in it trusted.

use crate::error::{Error, Result};

pub const NORMAL: u8 = 1;
pub const UNKNOWN: u8 = 2;
pub const CONTROL: u8 = 3;
pub const USER_DEFINED: u8 = 4;
pub const UNUSED: u8 = 5;
pub const BYTE: u8 = 6;

/// Byte strings borrowed from the caller, by index.
pub trait Strings {
    fn len(&self) -> usize;
    fn bytes(&self, index: usize) -> &[u8];
}

pub struct VocabData<'a> {
    pub sentence_piece: bool,
    pub pre: &'a str,
    pub tokens: &'a dyn Strings,
    pub merges: &'a dyn Strings,
    /// One a token.
    pub kinds: &'a [u8],
    /// One a token for SentencePiece, else empty.
    pub scores: &'a [f32],
    pub unknown: i32,
    pub add_space_prefix: bool,
}

impl VocabData<'_> {
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn merges_len(&self) -> usize {
        self.merges.len()
    }

    pub fn kind(&self, id: usize) -> u8 {
        self.kinds[id]
    }

    pub fn token(&self, id: usize) -> Result<&str> {
        std::str::from_utf8(self.tokens.bytes(id)).map_err(|_| Error::corrupt(format!("token {id} is not valid UTF-8")))
    }

    pub fn merge(&self, index: usize) -> Result<&str> {
        std::str::from_utf8(self.merges.bytes(index))
            .map_err(|_| Error::corrupt(format!("merge {index} is not valid UTF-8")))
    }
}
