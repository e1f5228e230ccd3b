//! How each pre-tokenizer name of GGUF files cuts text into words before byte pairs are merged. The patterns are
//! data of the models' own published tokenizers.

use tokenizers::normalizer::NormalizedString;
use tokenizers::utils::SysRegex;

use crate::error::{Code, Error, Result};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
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
    Pattern(SysRegex),
    /// Each numeric character alone.
    Digits,
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
        let (digits, patterns): (bool, &[&str]) = match family {
            Family::Gpt2 => (false, &[GPT2]),
            Family::DigitsGpt2 => (true, &[GPT2]),
            Family::Llama3 => (false, &[LLAMA3]),
            Family::Qwen2 => (false, &[QWEN2]),
            Family::Tekken => (false, &[TEKKEN]),
            Family::DeepseekCoder => (true, &DEEPSEEK_CODER),
        };
        let mut stages = Vec::new();
        if digits {
            stages.push(Stage::Digits);
        }
        for pattern in patterns {
            let regex = SysRegex::new(pattern).map_err(|e| Error::corrupt(format!("pre-tokenizer pattern: {e}")))?;
            stages.push(Stage::Pattern(regex));
        }
        Ok(PreTokenizer {
            stages,
            nfc: family == Family::Qwen2,
            whole_words: matches!(family, Family::Llama3 | Family::Tekken),
        })
    }

    /// Calls `word` with every word of `text`, in order.
    pub fn words(&self, text: &str, word: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        if self.nfc && !text.is_ascii() {
            let mut normalized = NormalizedString::from(text);
            normalized.nfc();
            return cut(&self.stages, normalized.get(), word);
        }
        cut(&self.stages, text, word)
    }
}

fn cut(stages: &[Stage], text: &str, word: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let Some((stage, later)) = stages.split_first() else {
        return if text.is_empty() { Ok(()) } else { word(text) };
    };
    let mut done = 0;
    let mut piece = |start: usize, end: usize| {
        cut(later, &text[done..start], word)?;
        done = end;
        cut(later, &text[start..end], word)
    };
    match stage {
        Stage::Pattern(regex) => {
            for (start, end) in regex.find_iter(text) {
                piece(start, end)?;
            }
        }
        Stage::Digits => {
            for (at, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                piece(at, at + c.len_utf8())?;
            }
        }
    }
    cut(later, &text[done..], word)
}
