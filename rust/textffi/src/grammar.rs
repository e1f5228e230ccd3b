//! Grammars that answers must follow, over llguidance: a vocabulary's prefix tree, a grammar compiled for it, and the
//! state of one answer that says which tokens may come next. What a grammar says comes from clients, so nothing in it
//! is trusted: its size, its nesting, the work of compiling it and the work of each mask have limits.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};

use crate::error::{Code, Error, Result};
use crate::vocab::Strings;

/// Of a grammar's text.
const TEXT_BYTES_MAX: usize = 1 << 18;
/// Brackets within brackets of a regular expression or a Lark grammar; those within strings count too.
const NESTING_MAX: usize = 128;
/// Levels of a schema.
const SCHEMA_DEPTH_MAX: usize = 64;
/// The compilers recurse over rules that name each other. Untouched stack costs nothing.
const STACK_BYTES: usize = 512 << 20;

const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    // About 20 ms, and as much again for 14 ms of one mask at most.
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    // About 1 KiB each, shared by the answers of one request.
    max_lexer_states: 16_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// Between the parts of JSON: nothing, a space, or a new line and its indentation. Were any amount allowed, a small
/// model could go on with white space until its last token.
const JSON_SPACE: &str = r"\x20|\n\x20{0,24}";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    JsonSchema,
    Regex,
    Lark,
}

/// What all grammars of one vocabulary share.
pub struct GrammarVocab {
    factory: ParserFactory,
}

/// A grammar for one vocabulary.
pub struct Grammar {
    start: Mutex<Matcher>,
}

/// Where one answer stands.
pub struct GrammarState {
    matcher: Matcher,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, message)
}

/// The part of a message that is about the grammar.
fn first_lines(message: &str) -> String {
    const CHARS_MAX: usize = 400;
    let text = message.split("<backtrace>").next().unwrap_or_default().trim();
    let mut short: String = text.chars().take(CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl GrammarVocab {
    /// `control`: one a token; such tokens stand for no text. The end of an answer is the token after the last.
    pub fn new(tokens: &dyn Strings, control: &[u8]) -> Result<GrammarVocab> {
        let count = tokens.len();
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(count + 1);
        for (id, control) in control.iter().enumerate() {
            let bytes = tokens.bytes(id);
            words.push(if *control != 0 && !bytes.is_empty() {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
            } else {
                bytes.to_vec()
            });
        }
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], b"<end of answer>".as_slice()].concat());
        let info = TokRxInfo::new(words.len() as u32, count as u32);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|e| Error::corrupt(format!("the vocabulary allows no grammars: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(GrammarVocab { factory })
    }

    pub fn compile(&self, kind: Kind, text: &str) -> Result<Grammar> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(invalid(format!("{} bytes: at most {TEXT_BYTES_MAX} are allowed", text.len())));
        }
        let compiling = || -> Result<Grammar> {
            let matcher = Matcher::new(self.factory.create_parser(parsed(kind, text)?));
            match matcher.get_error() {
                Some(message) => Err(invalid(first_lines(&message))),
                None => Ok(Grammar { start: Mutex::new(matcher) }),
            }
        };
        std::thread::scope(|scope| {
            let worker = std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, compiling)
                .map_err(|e| Error::new(Code::Exhausted, format!("no thread to compile a grammar: {e}")))?;
            worker.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        })
    }
}

fn parsed(kind: Kind, text: &str) -> Result<TopLevelGrammar> {
    if kind == Kind::JsonSchema {
        return schema(text);
    }
    check_nesting(text)?;
    Ok(if kind == Kind::Regex {
        TopLevelGrammar::from_regex(text)
    } else {
        TopLevelGrammar::from_lark(text.to_owned())
    })
}

fn check_nesting(text: &str) -> Result<()> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(invalid(format!("more than {NESTING_MAX} brackets within each other")));
        }
    }
    Ok(())
}

fn depth_of(value: &serde_json::Value) -> usize {
    // serde_json itself reads no more than 128 levels.
    match value {
        serde_json::Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        serde_json::Value::Object(members) => 1 + members.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}

fn schema(text: &str) -> Result<TopLevelGrammar> {
    let mut schema: serde_json::Value =
        serde_json::from_str(text).map_err(|e| invalid(format!("the schema is not JSON: {e}")))?;
    let depth = depth_of(&schema);
    if depth > SCHEMA_DEPTH_MAX {
        return Err(invalid(format!("{depth} levels: at most {SCHEMA_DEPTH_MAX} are allowed")));
    }
    let Some(members) = schema.as_object() else {
        return Err(invalid("a schema must be a JSON object"));
    };
    // Options of llguidance, one of which lets it ignore what it does not know.
    if members.contains_key("x-guidance") {
        return Err(invalid("'x-guidance' is not allowed in a schema"));
    }
    let options = JsonCompileOptions { whitespace_pattern: Some(JSON_SPACE.to_owned()), ..Default::default() };
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

impl Grammar {
    /// The state before the first token.
    pub fn start(&self) -> GrammarState {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        GrammarState { matcher: start.clone() }
    }
}

impl GrammarState {
    /// Sets bit t % 32 of bits[t / 32] for each token t that may come next; the bit after the last token's: the answer
    /// may end here. REQUIRES: bits for all of these.
    pub fn mask(&mut self, bits: &mut [u32]) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| invalid(first_lines(&e.to_string())))?;
        let words = mask.as_slice();
        let shared = words.len().min(bits.len());
        bits[..shared].copy_from_slice(&words[..shared]);
        bits[shared..].fill(0);
        Ok(())
    }

    /// REQUIRES: the last mask had it.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(|e| invalid(first_lines(&e.to_string())))
    }
}
