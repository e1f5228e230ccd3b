//! The C boundary (see `include/textffi.h`, whose types these mirror). All `unsafe` code of the crate is here.

mod byte_pair;
mod chat_template;
mod clock;
mod error;
mod grammar;
mod guard;
mod json;
mod merge;
mod pre_tokenizer;
mod sentence_piece;
mod special;
mod tokenizer;
mod vocab;

use std::panic::{catch_unwind, AssertUnwindSafe};

use chat_template::{ChatTemplate, TemplateSpec};
use clock::LocalTime;
use error::{Code, Error, Result};
use grammar::{Grammar, GrammarState, GrammarVocab, Kind};
use tokenizer::Tokenizer;
use vocab::{Strings, VocabData};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    data: *const u8,
    size: usize,
}

#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: usize,
}

#[repr(C)]
pub struct Ids {
    data: *mut i32,
    size: usize,
}

#[repr(C)]
pub struct Vocab {
    sentence_piece: u8,
    add_space_prefix: u8,
    unknown: i32,
    pre: Slice,
    tokens_count: usize,
    tokens: *const Slice,
    kinds: *const u8,
    scores: *const f32,
    merges_count: usize,
    merges: *const Slice,
}

#[repr(C)]
pub struct Spec {
    source: Slice,
    bos_token: Slice,
    eos_token: Slice,
    steps_max: u64,
    output_bytes_max: u64,
}

/// An array that C lent for the call.
///
/// # Safety
/// `data` points to `size` valid elements that live as long as `'a`, or `size` is 0.
unsafe fn borrow<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

impl Slice {
    /// # Safety
    /// As for `borrow`.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        borrow(self.data, self.size)
    }

    /// # Safety
    /// As for `borrow`.
    unsafe fn text<'a>(self, what: &str) -> Result<&'a str> {
        std::str::from_utf8(self.bytes())
            .map_err(|e| Error::corrupt(format!("{what}: not valid UTF-8 at byte {}", e.valid_up_to())))
    }
}

/// REQUIRES (by the callers in this file): every slice is valid for as long as this lives.
struct Lent<'a>(&'a [Slice]);

impl Strings for Lent<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn bytes(&self, index: usize) -> &[u8] {
        unsafe { self.0[index].bytes() }
    }
}

fn give_bytes(bytes: Vec<u8>) -> Buffer {
    let bytes = Box::leak(bytes.into_boxed_slice());
    Buffer { data: bytes.as_mut_ptr(), size: bytes.len() }
}

/// Runs `body`, writes its value to `out` or its error's message to `error`, and returns the code.
///
/// # Safety
/// `out` and `error` may be written.
unsafe fn guard<T>(out: *mut T, error: *mut Buffer, body: impl FnOnce() -> Result<T>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let message = format!("textffi panicked: {text}");
        // A payload's own destructor may panic as well.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        Err(Error::new(Code::Panic, message))
    });
    match result {
        Ok(value) => {
            out.write(value);
            0
        }
        Err(e) => {
            error.write(give_bytes(e.message.into_bytes()));
            e.code as i32
        }
    }
}

/// # Safety
/// `buffer` came from this crate and was not freed before, or is zeroed.
#[no_mangle]
pub unsafe extern "C" fn textffi_buffer_free(buffer: Buffer) {
    if !buffer.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(buffer.data, buffer.size)));
    }
}

/// # Safety
/// `ids` came from this crate and were not freed before, or are zeroed.
#[no_mangle]
pub unsafe extern "C" fn textffi_ids_free(ids: Ids) {
    if !ids.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids.data, ids.size)));
    }
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_tokenizer_new(
    vocab: *const Vocab,
    out: *mut *mut Tokenizer,
    error: *mut Buffer,
) -> i32 {
    guard(out, error, || {
        let v = &*vocab;
        let scores_count = if v.sentence_piece != 0 { v.tokens_count } else { 0 };
        let data = VocabData {
            sentence_piece: v.sentence_piece != 0,
            pre: v.pre.text("pre-tokenizer name")?,
            tokens: &Lent(borrow(v.tokens, v.tokens_count)),
            merges: &Lent(borrow(v.merges, v.merges_count)),
            kinds: borrow(v.kinds, v.tokens_count),
            scores: borrow(v.scores, scores_count),
            unknown: v.unknown,
            add_space_prefix: v.add_space_prefix != 0,
        };
        Ok(Box::into_raw(Box::new(Tokenizer::new(&data)?)))
    })
}

/// # Safety
/// `tokenizer` came from `textffi_tokenizer_new` and was not freed before, or is null.
#[no_mangle]
pub unsafe extern "C" fn textffi_tokenizer_free(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(tokenizer))));
    }
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: Slice,
    parse_special: u8,
    out: *mut Ids,
    error: *mut Buffer,
) -> i32 {
    guard(out, error, || {
        let ids = (*tokenizer).encode(text.bytes(), parse_special != 0);
        let ids = Box::leak(ids.into_boxed_slice());
        Ok(Ids { data: ids.as_mut_ptr(), size: ids.len() })
    })
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_template_new(
    spec: *const Spec,
    out: *mut *mut ChatTemplate,
    error: *mut Buffer,
) -> i32 {
    guard(out, error, || {
        let s = &*spec;
        let template = ChatTemplate::new(TemplateSpec {
            source: s.source.text("chat template")?,
            bos_token: s.bos_token.text("bos token")?,
            eos_token: s.eos_token.text("eos token")?,
            steps_max: s.steps_max,
            output_bytes_max: s.output_bytes_max,
        })?;
        Ok(Box::into_raw(Box::new(template)))
    })
}

/// # Safety
/// `template` came from `textffi_template_new` and was not freed before, or is null.
#[no_mangle]
pub unsafe extern "C" fn textffi_template_free(template: *mut ChatTemplate) {
    if !template.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(template))));
    }
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_template_render(
    template: *const ChatTemplate,
    messages: Slice,
    extra: Slice,
    add_generation_prompt: u8,
    now: *const LocalTime,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guard(out, error, || {
        let text = (*template).render(messages.bytes(), extra.bytes(), add_generation_prompt != 0, *now)?;
        Ok(give_bytes(text))
    })
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_vocab_new(
    tokens: *const Slice,
    control: *const u8,
    tokens_count: usize,
    out: *mut *mut GrammarVocab,
    error: *mut Buffer,
) -> i32 {
    guard(out, error, || {
        let tokens = Lent(borrow(tokens, tokens_count));
        Ok(Box::into_raw(Box::new(GrammarVocab::new(&tokens, borrow(control, tokens_count))?)))
    })
}

/// # Safety
/// `vocab` came from `textffi_grammar_vocab_new` and was not freed before, or is null.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_vocab_free(vocab: *mut GrammarVocab) {
    if !vocab.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(vocab))));
    }
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_new(
    vocab: *const GrammarVocab,
    kind: u8,
    text: Slice,
    out: *mut *mut Grammar,
    error: *mut Buffer,
) -> i32 {
    guard(out, error, || {
        let kind = match kind {
            0 => Kind::JsonSchema,
            1 => Kind::Regex,
            _ => Kind::Lark,
        };
        let text =
            std::str::from_utf8(text.bytes()).map_err(|_| Error::new(Code::InvalidArgument, "not valid UTF-8"))?;
        Ok(Box::into_raw(Box::new((*vocab).compile(kind, text)?)))
    })
}

/// # Safety
/// `grammar` came from `textffi_grammar_new` and was not freed before, or is null.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_free(grammar: *mut Grammar) {
    if !grammar.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(grammar))));
    }
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_start(
    grammar: *const Grammar,
    out: *mut *mut GrammarState,
    error: *mut Buffer,
) -> i32 {
    guard(out, error, || Ok(Box::into_raw(Box::new((*grammar).start()))))
}

/// # Safety
/// `state` came from `textffi_grammar_start` and was not freed before, or is null.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_state_free(state: *mut GrammarState) {
    if !state.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(state))));
    }
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_state_mask(
    state: *mut GrammarState,
    bits: *mut u32,
    words: usize,
    error: *mut Buffer,
) -> i32 {
    let mut nothing = ();
    guard(&mut nothing, error, || (*state).mask(std::slice::from_raw_parts_mut(bits, words)))
}

/// # Safety
/// As `textffi.h` says.
#[no_mangle]
pub unsafe extern "C" fn textffi_grammar_state_accept(state: *mut GrammarState, token: u32, error: *mut Buffer) -> i32 {
    let mut nothing = ();
    guard(&mut nothing, error, || (*state).accept(token))
}
