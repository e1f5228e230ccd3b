//! The filter `tojson` as model authors know it: what Python's `json.dumps(value, ensure_ascii=False, ...)` writes,
//! without HTML escaping.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Deeper values are refused (Python's own limit is near 1000).
const DEPTH_MAX: usize = 200;
/// Bytes that one unit of the renderer's fuel pays for.
const BYTES_PER_STEP: usize = 64;
const INDENT_MAX: usize = 64;

struct Writer<'a, 'b, 'c> {
    out: String,
    state: &'a State<'b, 'c>,
    /// Text of one level of indentation, or none: all on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ensure_ascii: bool,
    sort_keys: bool,
    /// Bytes of `out` that are paid for.
    paid_bytes: usize,
}

/// Registered as the filter `tojson`.
pub fn tojson(state: &State, value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(v)?.min(INDENT_MAX)),
        }),
    };
    let (mut item_separator, mut key_separator) = (", ".to_owned(), ": ".to_owned());
    if indent.is_some() {
        item_separator = ",".to_owned();
    }
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        match <[String; 2]>::try_from(separators) {
            Ok([item, key]) => (item_separator, key_separator) = (item, key),
            Err(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are not two strings")),
        }
    }
    let mut writer = Writer {
        out: String::new(),
        state,
        indent,
        item_separator,
        key_separator,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        paid_bytes: 0,
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

/// A float as Python writes it: the fewest digits that read back the same, with an exponent below 1e-4 and from 1e16.
pub fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "NaN".to_owned()
        } else {
            format!("{}Infinity", if number < 0.0 { "-" } else { "" })
        };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..=15 => format!("{number:?}"),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

impl Writer<'_, '_, '_> {
    /// Every value costs a step, and so do every 64 bytes, before the next is written: values that share parts
    /// can be far larger written out than in memory.
    fn pay(&mut self) -> Result<(), Error> {
        let bytes = self.out.len() - self.paid_bytes;
        self.paid_bytes = self.out.len();
        self.state.consume_fuel(1 + (bytes / BYTES_PER_STEP) as u64)
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: nested deeper than {DEPTH_MAX}")));
        }
        self.pay()?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => match f64::try_from(value.clone()) {
                Ok(number) if !value.is_integer() => self.out.push_str(&float(number)),
                _ => self.out.push_str(&value.to_string()),
            },
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut first = true;
                self.out.push('[');
                for item in value.try_iter()? {
                    self.separate(&mut first, depth + 1);
                    self.value(&item, depth + 1)?;
                }
                self.close(']', first, depth);
            }
            ValueKind::Map => self.map(value, depth)?,
            kind => {
                let message = format!("tojson: a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        let mut first = true;
        self.out.push('{');
        for key in keys {
            self.separate(&mut first, depth + 1);
            match key.kind() {
                ValueKind::String => self.string(key.as_str().unwrap_or_default()),
                ValueKind::None => self.out.push_str("\"null\""),
                ValueKind::Bool => self.out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
                ValueKind::Number => self.out.push_str(&format!("\"{key}\"")),
                kind => {
                    let message = format!("tojson: keys must be strings or numbers, not {kind}");
                    return Err(Error::new(ErrorKind::InvalidOperation, message));
                }
            }
            self.out.push_str(&self.key_separator);
            self.value(&value.get_item(&key)?, depth + 1)?;
        }
        self.close('}', first, depth);
        Ok(())
    }

    fn separate(&mut self, first: &mut bool, depth: usize) {
        if !std::mem::replace(first, false) {
            self.out.push_str(&self.item_separator);
        }
        self.line(depth);
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
