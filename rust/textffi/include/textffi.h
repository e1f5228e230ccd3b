/* The C ABI of the Rust crate textffi: tokenizers, chat templates, grammars.
 *
 * - Panics are caught at this boundary and returned as TEXTFFI_PANIC; nothing unwinds into the
 * caller.
 * - Slices are borrowed for the duration of a call. Buffers and handles that a call returns belong
 * to the caller, who gives them back with the matching free function, once. A zeroed buffer may be
 * freed too.
 * - On failure *error holds a message in UTF-8 (not terminated) and no other output is set. `error`
 * is never NULL.
 * - Handles are immutable, but for textffi_grammar_state: one may be used from many threads at
 * once, but not while it is freed. A state is used by one thread at a time.
 * - There is no global state. */
#ifndef TEXTFFI_H_
#define TEXTFFI_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  TEXTFFI_OK = 0,
  TEXTFFI_INVALID_ARGUMENT = 1, /* a template called raise_exception, or an argument is no JSON */
  TEXTFFI_UNSUPPORTED = 2,
  TEXTFFI_CORRUPT = 3, /* a vocabulary or template that breaks its own rules */
  TEXTFFI_EXHAUSTED = 4,
  TEXTFFI_PANIC = 5
};

typedef struct {
  const uint8_t* data; /* may be NULL where size is 0 */
  size_t size;
} textffi_slice;

typedef struct {
  uint8_t* data;
  size_t size;
} textffi_buffer;

typedef struct {
  int32_t* data;
  size_t size;
} textffi_ids;

void textffi_buffer_free(textffi_buffer buffer);
void textffi_ids_free(textffi_ids ids);

/* ---- tokenizers ---- */

typedef struct textffi_tokenizer textffi_tokenizer;

typedef struct {
  uint8_t sentence_piece; /* 0: byte-level BPE by merges; 1: SentencePiece-style BPE by scores */
  uint8_t add_space_prefix;
  int32_t unknown;   /* -1: none */
  textffi_slice pre; /* pre-tokenizer name, for byte-level BPE */
  size_t tokens_count;
  const textffi_slice* tokens; /* [tokens_count], no two alike but for empty ones */
  const uint8_t* kinds;        /* [tokens_count], 1 to 6 as in GGUF's token_type */
  const float* scores;         /* [tokens_count], finite, for SentencePiece; else NULL */
  size_t merges_count;
  const textffi_slice* merges; /* [merges_count] "left right", for byte-level BPE */
} textffi_vocab;

int32_t textffi_tokenizer_new(const textffi_vocab* vocab, textffi_tokenizer** out,
                              textffi_buffer* error);
void textffi_tokenizer_free(textffi_tokenizer* tokenizer);
/* parse_special: control tokens spelled in the text become those tokens. The text has at most 2^30
 * bytes. */
int32_t textffi_tokenizer_encode(const textffi_tokenizer* tokenizer, textffi_slice text,
                                 uint8_t parse_special, textffi_ids* out, textffi_buffer* error);

/* ---- chat templates ---- */

typedef struct textffi_template textffi_template;

typedef struct {
  textffi_slice source;
  textffi_slice bos_token, eos_token; /* empty: undefined in the template */
  uint64_t steps_max;                 /* instructions; 64 bytes made or read count as one more */
  uint64_t output_bytes_max;
} textffi_template_spec;

/* Local time, for the templates' strftime_now. */
typedef struct {
  int32_t year;        /* 2024 */
  int32_t month;       /* 1 to 12 */
  int32_t day;         /* 1 to 31 */
  int32_t hour;        /* 0 to 23 */
  int32_t minute;      /* 0 to 59 */
  int32_t second;      /* 0 to 60 */
  int32_t weekday;     /* 0 to 6, from Sunday */
  int32_t day_of_year; /* 1 to 366 */
} textffi_time;

int32_t textffi_template_new(const textffi_template_spec* spec, textffi_template** out,
                             textffi_buffer* error);
void textffi_template_free(textffi_template* tmpl);
/* messages: a JSON array. extra: a JSON object of further variables, or empty. */
int32_t textffi_template_render(const textffi_template* tmpl, textffi_slice messages,
                                textffi_slice extra, uint8_t add_generation_prompt,
                                const textffi_time* now, textffi_buffer* out,
                                textffi_buffer* error);

/* ---- grammars that answers must follow ---- */

typedef struct textffi_grammar_vocab textffi_grammar_vocab;
typedef struct textffi_grammar textffi_grammar;
typedef struct textffi_grammar_state textffi_grammar_state;

enum { TEXTFFI_JSON_SCHEMA = 0, TEXTFFI_REGEX = 1, TEXTFFI_LARK = 2 };

/* tokens: the bytes that each stands for. control: one a token, not 0 where it stands for no text.
 */
int32_t textffi_grammar_vocab_new(const textffi_slice* tokens, const uint8_t* control,
                                  size_t tokens_count, textffi_grammar_vocab** out,
                                  textffi_buffer* error);
void textffi_grammar_vocab_free(textffi_grammar_vocab* vocab);
/* TEXTFFI_INVALID_ARGUMENT: the text is no such grammar, asks for what is not supported, or is too
 * costly. */
int32_t textffi_grammar_new(const textffi_grammar_vocab* vocab, uint8_t kind, textffi_slice text,
                            textffi_grammar** out, textffi_buffer* error);
void textffi_grammar_free(textffi_grammar* grammar);
/* The state before an answer's first token. */
int32_t textffi_grammar_start(const textffi_grammar* grammar, textffi_grammar_state** out,
                              textffi_buffer* error);
void textffi_grammar_state_free(textffi_grammar_state* state);
/* Bit t % 32 of bits[t / 32]: token t may come next; t = tokens_count: the answer may end here.
 * words: (tokens_count + 32) / 32. */
int32_t textffi_grammar_state_mask(textffi_grammar_state* state, uint32_t* bits, size_t words,
                                   textffi_buffer* error);
/* token: one that the mask before allowed. */
int32_t textffi_grammar_state_accept(textffi_grammar_state* state, uint32_t token,
                                     textffi_buffer* error);

#ifdef __cplusplus
}
#endif

#endif /* TEXTFFI_H_ */
