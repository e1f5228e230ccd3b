//! How each pre-tokenizer name of GGUF files cuts text into words before byte pairs are merged. The patterns are
//! data of the models' own published tokenizers, but for their last words on white space, `\s+(?!\S)|\s+`: of a run of
//! white space the last character belongs to the word that follows. Backtracking matchers need memory for every
//! character of the run, and the one in the `tokenizers` crate silently stops at a million; here it is `\s+`, and
//! `Pattern::end` gives the character back.

use regex::Regex;
use unicode_normalization_alignments::UnicodeNormalization;

use crate::error::{Code, Error, Result};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
const DEEPSEEK_CODER: [&str; 4] =
    [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\u{4E00}-\u{9FA5}\u{0800}-\u{4E00}\u{AC00}-\u{D7FF}]+"];

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Gpt2,
    /// GPT-2's words, each digit alone first.
    DigitsGpt2,
    Llama3,
    Qwen2,
    Tekken,
    DeepseekCoder,
}

const NAMES: [(&str, Family); 15] = [
    // Files older than the key: the reference takes GPT-2's words.
    ("", Family::Gpt2),
    ("default", Family::Gpt2),
    ("gpt-2", Family::Gpt2),
    ("gpt2", Family::Gpt2),
    ("smollm", Family::DigitsGpt2),
    ("starcoder", Family::DigitsGpt2),
    ("refact", Family::DigitsGpt2),
    ("llama-bpe", Family::Llama3),
    ("llama3", Family::Llama3),
    ("llama-v3", Family::Llama3),
    ("llama-v3.1", Family::Llama3),
    ("qwen2", Family::Qwen2),
    ("deepseek-r1-qwen", Family::Qwen2),
    ("tekken", Family::Tekken),
    ("deepseek-coder", Family::DeepseekCoder),
];

/// Cuts each piece of text that the stage before left.
enum Stage {
    /// Matches, and what lies between them.
    Pattern(Pattern),
    /// Each numeric character alone.
    Digits,
}

struct Pattern {
    regex: Regex,
    spaces: Spaces,
}

/// Which words end in white space and leave their last character to the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// None.
    Keep,
    /// All: such words are runs of white space.
    Share,
    /// Those that do not end in a new line: words of new lines are complete.
    ShareButLines,
}

impl Pattern {
    /// Where the word `text[start..end]` that the regex found really ends.
    fn end(&self, text: &str, start: usize, end: usize) -> usize {
        let Some(last) = text[start..end].chars().next_back() else { return end };
        let shared = last.is_whitespace()
            && match self.spaces {
                Spaces::Keep => false,
                Spaces::Share => true,
                Spaces::ShareButLines => !matches!(last, '\r' | '\n'),
            };
        // At the end of the text no word follows, and a word keeps at least one character.
        if shared && end < text.len() && start + last.len_utf8() < end {
            end - last.len_utf8()
        } else {
            end
        }
    }
}

pub struct PreTokenizer {
    stages: Vec<Stage>,
    /// The text is brought to Unicode's form NFC first.
    nfc: bool,
    /// A word that is a token of its own is not taken apart.
    pub whole_words: bool,
}

impl PreTokenizer {
    /// Errors: `Unsupported` with the name and what is known.
    pub fn by_name(name: &str) -> Result<PreTokenizer> {
        let Some(&(_, family)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = NAMES.iter().map(|(n, _)| *n).filter(|n| !n.is_empty()).collect();
            return Err(Error::new(
                Code::Unsupported,
                format!("pre-tokenizer '{name}' is not known; known are {}", known.join(", ")),
            ));
        };
        let (digits, spaces, patterns): (bool, Spaces, &[&str]) = match family {
            Family::Gpt2 => (false, Spaces::Share, &[GPT2]),
            Family::DigitsGpt2 => (true, Spaces::Share, &[GPT2]),
            Family::Llama3 => (false, Spaces::ShareButLines, &[LLAMA3]),
            Family::Qwen2 => (false, Spaces::ShareButLines, &[QWEN2]),
            Family::Tekken => (false, Spaces::ShareButLines, &[TEKKEN]),
            Family::DeepseekCoder => (true, Spaces::Keep, &DEEPSEEK_CODER),
        };
        let mut stages = Vec::new();
        if digits {
            stages.push(Stage::Digits);
        }
        for pattern in patterns {
            let regex = Regex::new(pattern).map_err(|e| Error::corrupt(format!("pre-tokenizer pattern: {e}")))?;
            stages.push(Stage::Pattern(Pattern { regex, spaces }));
        }
        Ok(PreTokenizer {
            stages,
            nfc: family == Family::Qwen2,
            whole_words: matches!(family, Family::Llama3 | Family::Tekken),
        })
    }

    /// Calls `word` with every word of `text`, in order.
    pub fn words(&self, text: &str, word: &mut dyn FnMut(&str)) {
        if self.nfc && !text.is_ascii() {
            let normalized: String = text.nfc().map(|(character, _)| character).collect();
            return cut(&self.stages, &normalized, word);
        }
        cut(&self.stages, text, word)
    }
}

fn cut(stages: &[Stage], text: &str, word: &mut dyn FnMut(&str)) {
    let Some((stage, later)) = stages.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut done = 0;
    let mut piece = |start: usize, end: usize| {
        cut(later, &text[done..start], word);
        cut(later, &text[start..end], word);
        done = end;
    };
    match stage {
        Stage::Pattern(pattern) => {
            let mut from = 0;
            while let Some(found) = pattern.regex.find_at(text, from) {
                // No pattern matches the empty text, so this goes forward.
                from = pattern.end(text, found.start(), found.end());
                piece(found.start(), from);
            }
        }
        Stage::Digits => {
            for (at, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                piece(at, at + c.len_utf8());
            }
        }
    }
    cut(later, &text[done..], word)
}
