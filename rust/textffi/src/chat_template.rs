//! Chat templates, rendered the way model authors test them: Jinja with trimmed blocks, loop controls, and the
//! functions `raise_exception` and `strftime_now`. The source comes with a model, so nothing in it is trusted.

use minijinja::machinery::{eval, make_string_output, parse, CodeGenerator};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{escape_formatter, AutoEscape, Environment, ErrorKind, Output, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::clock::LocalTime;
use crate::error::{Code, Error, Result};
use crate::guard::{self, too_large, TooLarge};
use crate::json::{float, tojson};

const NAME: &str = "chat";
const SOURCE_BYTES_MAX: usize = 1 << 18;
/// Calls of macros within macros.
const RECURSION_MAX: usize = 100;

pub struct TemplateSpec<'a> {
    pub source: &'a str,
    pub bos_token: &'a str,
    pub eos_token: &'a str,
    pub steps_max: u64,
    pub output_bytes_max: u64,
}

pub struct ChatTemplate {
    source: String,
    syntax: SyntaxConfig,
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    steps_max: u64,
}

/// What a template itself complains of.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Raised {}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// Bytes written so far in one rendering, captured text included.
struct Written(usize);

/// Writes a value as Python does, and fails where the output gets too long.
fn write_value(
    out: &mut Output,
    state: &mut State,
    value: &Value,
    bytes_max: usize,
) -> std::result::Result<(), minijinja::Error> {
    let text = match (value.as_str(), value.kind()) {
        (Some(_), _) => value.clone(),
        (None, ValueKind::Undefined) => return Ok(()),
        (None, ValueKind::Number) if !value.is_integer() => Value::from(float(f64::try_from(value.clone())?)),
        (None, _) => Value::from(value.to_string()),
    };
    let written = state.get_or_insert_extension(Written(0));
    written.0 += text.as_str().map_or(0, str::len);
    if written.0 > bytes_max {
        return Err(too_large(format!("more than {bytes_max} bytes of output")));
    }
    escape_formatter(out, state, &text)
}

/// Python's methods. `str.format` is checked first, since a width may ask for any size, and a field for any part of
/// the arguments any number of times.
fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    if let (Some(text), "format") = (value.as_str(), method) {
        if text.as_bytes().windows(4).any(|w| w.iter().all(u8::is_ascii_digit)) {
            let message = "str.format: a number of more than 3 digits";
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
        }
        let fields = text.bytes().filter(|b| *b == b'{').count() as u64;
        let mut units = 16;
        for arg in args {
            units += guard::units(state, arg)?;
        }
        state.consume_fuel(fields.saturating_mul(units))?;
    }
    unknown_method_callback(state, value, method, args)
}

/// `{% generation %}` marks what training counts as the assistant's words; for rendering it does nothing. As
/// minijinja has no such tag, it becomes `{% if true %}`, which keeps the tag's white-space rules.
fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { continue };
        let inside = &tag[..end];
        let word = inside.trim_matches(|c: char| c.is_ascii_whitespace() || c == '-' || c == '+');
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inside.replacen(word, replacement, 1));
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

fn describe(e: &minijinja::Error) -> String {
    let mut message = match e.line() {
        Some(line) => format!("chat template, line {line}: {}", e.kind()),
        None => format!("chat template: {}", e.kind()),
    };
    if let Some(detail) = e.detail() {
        message.push_str(&format!(": {detail}"));
    }
    message
}

/// An error of type T among those that led to `e`: errors inside macros and calls are wrapped in others.
fn cause<'a, T: std::error::Error + 'static>(e: &'a minijinja::Error, matches: impl Fn(&T) -> bool) -> Option<&'a T> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(error) = next {
        match error.downcast_ref::<T>() {
            Some(found) if matches(found) => return Some(found),
            _ => next = error.source(),
        }
    }
    None
}

fn json_value(json: &[u8], what: &str) -> Result<serde_json::Value> {
    serde_json::from_slice(json).map_err(|e| Error::new(Code::InvalidArgument, format!("{what}: not JSON: {e}")))
}

impl ChatTemplate {
    pub fn new(spec: TemplateSpec) -> Result<ChatTemplate> {
        if spec.source.len() > SOURCE_BYTES_MAX {
            return Err(Error::corrupt(format!(
                "chat template of {} bytes; at most {SOURCE_BYTES_MAX} are allowed",
                spec.source.len()
            )));
        }
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::corrupt(describe(&e)))?;
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_fuel(Some(spec.steps_max));
        environment.set_unknown_method_callback(call_method);
        let bytes_max = usize::try_from(spec.output_bytes_max).unwrap_or(usize::MAX);
        environment.set_formatter(move |out, state, value| write_value(out, state, value, bytes_max));
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_filter(guard::GUARD, guard::guard);
        environment.add_filter(guard::GUARD_ATTRIBUTE, guard::guard_attribute);
        environment.add_filter(guard::GUARD_TEXT, guard::guard_text);
        environment.remove_global("debug");
        let named = |token: &str| (!token.is_empty()).then(|| token.to_owned());
        let template = ChatTemplate {
            source: replace_generation_tags(spec.source),
            syntax,
            environment,
            bos_token: named(spec.bos_token),
            eos_token: named(spec.eos_token),
            steps_max: spec.steps_max,
        };
        guard::check_source(&template.source, &template.syntax)
            .map_err(|message| Error::corrupt(format!("chat template, {message}")))?;
        template.compile()?;
        Ok(template)
    }

    /// Compiled anew for each rendering, which takes far less time than a token: compiled code borrows its source.
    fn compile(&self) -> Result<CodeGenerator<'_>> {
        let parsed = parse(&self.source, NAME, self.syntax.clone()).map_err(|e| Error::corrupt(describe(&e)))?;
        let mut generator = CodeGenerator::new(NAME, &self.source);
        generator.compile_stmt(&guard::rewrite(&parsed));
        Ok(generator)
    }

    pub fn render(
        &self,
        messages: &[u8],
        extra: &[u8],
        add_generation_prompt: bool,
        now: LocalTime,
    ) -> Result<Vec<u8>> {
        let context = self.context(messages, extra, add_generation_prompt, now)?;
        let (instructions, blocks) = self.compile()?.finish();
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let done = eval(&self.environment, &instructions, context, &blocks, &mut output, AutoEscape::None).map(|_| ());
        done.map_err(|e| self.classify(&e))?;
        Ok(text.into_bytes())
    }

    fn classify(&self, e: &minijinja::Error) -> Error {
        if let Some(Raised(message)) = cause(e, |_| true) {
            return Error::new(Code::InvalidArgument, format!("the chat template refuses: {message}"));
        }
        if let Some(TooLarge(message)) = cause(e, |_| true) {
            return Error::new(Code::Exhausted, format!("chat template: {message}"));
        }
        if cause(e, |e: &minijinja::Error| e.kind() == ErrorKind::OutOfFuel).is_some() {
            let message = format!("chat template: more work than {} steps", self.steps_max);
            return Error::new(Code::Exhausted, message);
        }
        Error::corrupt(describe(e))
    }

    fn context(&self, messages: &[u8], extra: &[u8], add_generation_prompt: bool, now: LocalTime) -> Result<Value> {
        let messages = json_value(messages, "messages")?;
        if !messages.is_array() {
            return Err(Error::new(Code::InvalidArgument, "messages: not a JSON array"));
        }
        let mut variables: Vec<(String, Value)> = vec![
            // Always defined where templates are tested, if only as None.
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
        ];
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                variables.push((name.to_owned(), Value::from(token.as_str())));
            }
        }
        if !extra.is_empty() {
            let serde_json::Value::Object(extra) = json_value(extra, "template variables")? else {
                return Err(Error::new(Code::InvalidArgument, "template variables: not a JSON object"));
            };
            variables.extend(extra.into_iter().map(|(name, value)| (name, Value::from(Serde(value)))));
        }
        // Last, so that no further variable takes their place.
        variables.push(("messages".to_owned(), Value::from(Serde(messages))));
        variables.push(("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)));
        let strftime_now = move |pattern: &str| now.format(pattern);
        variables.push(("strftime_now".to_owned(), Value::from_function(strftime_now)));
        Ok(Value::from_pairs(variables))
    }
}
