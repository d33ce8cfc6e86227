//! Chat templates of any model: Jinja as `transformers` runs it, with bounds on what a template may cost.
//!
//! The formats of GLM are rendered without this, by `conversation`; a template turns specials that a user wrote into
//! tokens, as it does in every stack that renders one text and tokenizes it.

use std::ops::Range;

use indexmap::IndexMap;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value as Any};

use crate::{Error, Value, python};

/// Instructions and 64-byte pieces of text that one rendering may take.
const FUEL: u64 = 20_000_000;
/// Longest template, in bytes.
const MAX_SOURCE: usize = 1 << 20;
const NAME: &str = "chat_template";
/// Stand around what the assistant wrote until the text is whole: code points that are no characters.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// A chat template that has been read.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What the model reads.
    pub text: String,
    /// Bytes of `text` inside of `{% generation %}`: what the assistant wrote. Ascending.
    pub learned: Vec<Range<usize>>,
}

impl Template {
    /// Reads a template, such as the content of a `chat_template.jinja`.
    ///
    /// It sees what `transformers` gives it: blocks trimmed, `tojson` that escapes nothing for HTML, `raise_exception`,
    /// `strftime_now`, `{% generation %}`, `{% break %}` and `{% continue %}`, the methods of Python's `str`, `dict`
    /// and `list`. Source: `transformers`, `utils/chat_template_utils.py`.
    ///
    /// # Errors
    ///
    /// [`Error::Template`] names the line that cannot be read.
    pub fn parse(source: &str) -> Result<Self, Error> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Template { problem: "it is longer than 1 MiB".to_owned() });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("jinja's own delimiters"));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::to_string(value))?));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", |value: &Any| python::to_string(value));
        environment
            .add_filter("generation", |text: &str| format!("{}{text}{}", MARKS[0], MARKS[1]));
        environment.add_function("raise_exception", |message: &str| {
            Err::<(), _>(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
        });
        environment.add_function("strftime_now", |format: &str| {
            jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
                minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string())
            })
        });
        environment
            .add_template_owned(NAME, generation_as_filter(source))
            .map_err(|error| unreadable(&error))?;
        Ok(Self { environment })
    }

    /// Renders with `variables`, an object: `messages`, `tools`, `add_generation_prompt` and whatever else the template
    /// looks at.
    ///
    /// # Errors
    ///
    /// [`Error::Template`] if the template refuses the conversation or costs more than it may.
    pub fn render(&self, variables: &Value) -> Result<Rendered, Error> {
        let template = self.environment.get_template(NAME).map_err(|error| unreadable(&error))?;
        let marked = template.render(to_any(variables)?).map_err(|error| unreadable(&error))?;
        let (mut text, mut learned) = (String::with_capacity(marked.len()), Vec::new());
        let mut start = None;
        for piece in marked.split_inclusive(MARKS) {
            let plain = piece.trim_end_matches(MARKS);
            text.push_str(plain);
            if piece.ends_with(MARKS[0]) {
                start = Some(text.len());
            } else if let (true, Some(start)) = (piece.ends_with(MARKS[1]), start.take()) {
                learned.push(start..text.len());
            }
        }
        Ok(Rendered { text, learned })
    }
}

/// `{% generation %}` blocks as filter blocks, which have the same scope and can mark what they hold.
fn generation_as_filter(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start + 2..start + 2 + length]);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(before);
        out.push_str("{%");
        match word {
            "generation" => out.push_str(&tag.replace("generation", "filter generation")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endfilter")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[start + 2 + length + 2..];
    }
    out.push_str(rest);
    out
}

fn unreadable(error: &minijinja::Error) -> Error {
    let place = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    let kind = error.kind();
    let problem = match error.detail() {
        Some(detail) if kind == ErrorKind::InvalidOperation => format!("{detail}{place}"),
        Some(detail) => format!("{kind}: {detail}{place}"),
        None => format!("{kind}{place}"),
    };
    Error::Template { problem }
}

fn to_any(value: &Value) -> Result<Any, Error> {
    Ok(match value {
        Value::Null => Any::from(()),
        Value::Bool(value) => Any::from(*value),
        Value::Number(text) => match text.parse::<i128>() {
            Ok(whole) => i64::try_from(whole).map_or_else(|_| Any::from(whole), Any::from),
            Err(_) if text.contains(['.', 'e', 'E']) => {
                Any::from(text.parse::<f64>().expect("a number that has been read"))
            }
            Err(_) => {
                return Err(Error::Template {
                    problem: "a whole number takes over 128 bits".to_owned(),
                });
            }
        },
        Value::String(text) if text.contains(MARKS) => {
            let problem = "a text holds U+FDD0 or U+FDD1, which are no characters".to_owned();
            return Err(Error::Template { problem });
        }
        Value::String(text) => Any::from(text.as_str()),
        Value::Array(items) => Any::from(items.iter().map(to_any).collect::<Result<Vec<_>, _>>()?),
        Value::Object(entries) => {
            let entries =
                entries.iter().map(|(key, value)| Ok((Any::from(key.as_str()), to_any(value)?)));
            Any::from_object(entries.collect::<Result<IndexMap<_, _>, Error>>()?)
        }
    })
}

/// `json.dumps` with the arguments that `transformers` lets a template give.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a filter")]
fn to_json(_: &State, value: &Any, options: Kwargs) -> Result<Any, minijinja::Error> {
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let indent = options.get::<Option<usize>>("indent")?;
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => {
            return Err(minijinja::Error::new(
                ErrorKind::InvalidOperation,
                "separators must be two texts",
            ));
        }
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let style = python::Json {
        item,
        key,
        indent: indent.filter(|&width| width <= 64),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    if value.kind() == ValueKind::Undefined {
        let problem = "Object of type Undefined is not JSON serializable";
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem));
    }
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Any::from_safe_string(out))
}
