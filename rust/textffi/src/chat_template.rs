//! Chat templates, rendered the way model authors test them: Jinja with trimmed blocks, loop controls, and the
//! functions `raise_exception` and `strftime_now`. The source comes with a model, so nothing in it is trusted.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::clock::LocalTime;
use crate::error::{Code, Error, Result};
use crate::json::tojson;

const NAME: &str = "chat";
const SOURCE_BYTES_MAX: usize = 1 << 20;
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
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    steps_max: u64,
    output_bytes_max: usize,
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
    Err(
        minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception")
            .with_source(Raised(message)),
    )
}

/// Takes output up to a limit and then fails, so that rendering stops there.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.bytes_max - self.bytes.len() {
            self.full = true;
            return Err(io::Error::new(io::ErrorKind::Other, "output limit"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

/// The error that started it all: errors inside macros and calls are wrapped in others.
fn raised(e: &minijinja::Error) -> Option<&Raised> {
    let mut source = std::error::Error::source(e);
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<Raised>() {
            return Some(found);
        }
        source = inner.source();
    }
    None
}

fn out_of_fuel(e: &minijinja::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(inner) = source {
        let kind = inner.downcast_ref::<minijinja::Error>().map(|e| e.kind());
        if kind == Some(ErrorKind::OutOfFuel) {
            return true;
        }
        source = inner.source();
    }
    false
}

fn json_value(json: &[u8], what: &str) -> Result<serde_json::Value> {
    serde_json::from_slice(json)
        .map_err(|e| Error::new(Code::InvalidArgument, format!("{what}: not JSON: {e}")))
}

impl ChatTemplate {
    pub fn new(spec: TemplateSpec) -> Result<ChatTemplate> {
        if spec.source.len() > SOURCE_BYTES_MAX {
            return Err(Error::corrupt(format!(
                "chat template of {} bytes; at most {SOURCE_BYTES_MAX} are allowed",
                spec.source.len()
            )));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::corrupt(describe(&e)))?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_fuel(Some(spec.steps_max));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.remove_global("debug");
        environment
            .add_template_owned(NAME, replace_generation_tags(spec.source))
            .map_err(|e| Error::corrupt(describe(&e)))?;
        let named = |token: &str| (!token.is_empty()).then(|| token.to_owned());
        Ok(ChatTemplate {
            environment,
            bos_token: named(spec.bos_token),
            eos_token: named(spec.eos_token),
            steps_max: spec.steps_max,
            output_bytes_max: usize::try_from(spec.output_bytes_max).unwrap_or(usize::MAX),
        })
    }

    pub fn render(
        &self,
        messages: &[u8],
        extra: &[u8],
        add_generation_prompt: bool,
        now: LocalTime,
    ) -> Result<Vec<u8>> {
        let context = self.context(messages, extra, add_generation_prompt, now)?;
        let mut output = Bounded {
            bytes: Vec::new(),
            bytes_max: self.output_bytes_max,
            full: false,
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            template
                .render_captured_to(context, &mut output)
                .map(|_| ())
        });
        match rendered {
            Ok(()) => Ok(output.bytes),
            Err(_) if output.full => Err(Error::new(
                Code::Exhausted,
                format!(
                    "chat template: more than {} bytes of output",
                    self.output_bytes_max
                ),
            )),
            Err(e) => Err(self.classify(&e)),
        }
    }

    fn classify(&self, e: &minijinja::Error) -> Error {
        if let Some(Raised(message)) = raised(e) {
            return Error::new(
                Code::InvalidArgument,
                format!("the chat template refuses: {message}"),
            );
        }
        if out_of_fuel(e) {
            let message = format!("chat template: more work than {} steps", self.steps_max);
            return Error::new(Code::Exhausted, message);
        }
        Error::corrupt(describe(e))
    }

    fn context(
        &self,
        messages: &[u8],
        extra: &[u8],
        add_generation_prompt: bool,
        now: LocalTime,
    ) -> Result<Value> {
        let messages = json_value(messages, "messages")?;
        if !messages.is_array() {
            return Err(Error::new(
                Code::InvalidArgument,
                "messages: not a JSON array",
            ));
        }
        let mut variables: Vec<(String, Value)> = vec![
            // Always defined where templates are tested, if only as None.
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
        ];
        for (name, token) in [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
        ] {
            if let Some(token) = token {
                variables.push((name.to_owned(), Value::from(token.as_str())));
            }
        }
        if !extra.is_empty() {
            let serde_json::Value::Object(extra) = json_value(extra, "template variables")? else {
                return Err(Error::new(
                    Code::InvalidArgument,
                    "template variables: not a JSON object",
                ));
            };
            variables.extend(
                extra
                    .into_iter()
                    .map(|(name, value)| (name, Value::from(Serde(value)))),
            );
        }
        // Last, so that no further variable takes their place.
        variables.push(("messages".to_owned(), Value::from(Serde(messages))));
        variables.push((
            "add_generation_prompt".to_owned(),
            Value::from(add_generation_prompt),
        ));
        let strftime_now = move |pattern: &str| now.format(pattern);
        variables.push((
            "strftime_now".to_owned(),
            Value::from_function(strftime_now),
        ));
        Ok(Value::from_pairs(variables))
    }
}
