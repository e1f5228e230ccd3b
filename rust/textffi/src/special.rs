//! Finding tokens that are matched as they are spelled: control tokens (where the text is trusted to hold them)
//! and user-defined ones.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::error::{Code, Error, Result};

/// Bytes of all such tokens together: their automaton is many times as large.
const SPELLED_BYTES_MAX: usize = 1 << 20;

/// Finds the leftmost match, the longest of those that start there. None where there are no patterns.
pub fn build_matcher(patterns: &[&str]) -> Result<Option<AhoCorasick>> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let bytes: usize = patterns.iter().map(|p| p.len()).sum();
    if bytes > SPELLED_BYTES_MAX {
        return Err(Error::new(
            Code::Unsupported,
            format!(
                "control and user-defined tokens of {bytes} bytes in all; at most {SPELLED_BYTES_MAX} are supported"
            ),
        ));
    }
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .kind(Some(AhoCorasickKind::ContiguousNFA))
        .build(patterns)
        .map(Some)
        .map_err(|e| Error::new(Code::Unsupported, format!("control tokens: {e}")))
}
