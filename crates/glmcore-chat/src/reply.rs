//! A model's reply taken apart: the plain reading of a whole text, and the specification of the stream parser.
//!
//! Source: the parsing rules of the GLM-4.5 repository, `resources/glm_4.6_tir_guide.md`. One rule differs: thinking
//! ends at the last `</think>` *before the first tool call of the answer*, not at the last of the whole text, so a tool
//! call whose arguments mention the tag stays a tool call.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Value, python};

/// What an assistant said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Its thinking, without surrounding white space.
    pub reasoning: String,
    /// Its answer, without surrounding white space.
    pub content: String,
    /// The tools it calls. A call that was cut off is left out.
    pub calls: Vec<Call>,
    /// False if the thinking was cut off before its end tag.
    pub finished_thinking: bool,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// In the order they were written; a key may stand twice.
    pub arguments: Vec<Argument>,
}

/// An argument of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: ArgumentValue,
}

/// What an argument holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArgumentValue {
    /// Text: the schema says so, or it is no JSON.
    Text(String),
    /// Text of a JSON value that [`Value::parse`] takes.
    Json(String),
}

/// The arguments of tools that their schemas declare strings: they are never read as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StringArguments(BTreeMap<String, BTreeSet<String>>);

impl StringArguments {
    /// Reads tool descriptions, bare or under `function`. What is no description declares nothing.
    pub fn of_tools(tools: &Value) -> Self {
        let mut declared = BTreeMap::new();
        for tool in tools.as_array().unwrap_or_default() {
            let function = tool.get("function").unwrap_or(tool);
            let properties = function.get("parameters").and_then(|schema| schema.get("properties"));
            let (Some(name), Some(Value::Object(properties))) =
                (function.get("name").and_then(Value::as_str), properties)
            else {
                continue;
            };
            let is_string =
                |schema: &Value| schema.get("type").and_then(Value::as_str) == Some("string");
            let strings = properties.iter().filter(|(_, schema)| is_string(schema));
            declared.insert(name.to_owned(), strings.map(|(key, _)| key.clone()).collect());
        }
        Self(declared)
    }

    fn has(&self, name: &str, key: &str) -> bool {
        self.0.get(name).is_some_and(|keys: &BTreeSet<String>| keys.contains(key))
    }
}

/// Takes a whole reply apart, in linear time. Every text is some reply.
///
/// `in_thinking` says that the prompt ended with `<think>`, so the reply starts inside the thinking. A reply that
/// starts with `</think>` has thought nothing.
pub fn parse_reply(text: &str, in_thinking: bool, strings: &StringArguments) -> Reply {
    let text = text.trim_start_matches('\n');
    let opened = text.strip_prefix("<think>");
    let thinks = opened.is_some() || in_thinking || text.starts_with("</think>");
    let mut rest = opened.unwrap_or(text);
    let mut reply = Reply { finished_thinking: true, ..Reply::default() };
    if thinks {
        let end = last_think_end(rest);
        reply.finished_thinking = end.is_some();
        python::strip(&rest[..end.unwrap_or(rest.len())]).clone_into(&mut reply.reasoning);
        rest = end.map_or("", |end| &rest[end + "</think>".len()..]);
    }
    let (content, mut calls) = rest.split_once("<tool_call>").unwrap_or((rest, ""));
    python::strip(content).clone_into(&mut reply.content);
    while let Some((call, more)) = calls.split_once("</tool_call>") {
        reply.calls.push(parse_call(call, strings));
        calls = more.split_once("<tool_call>").map_or("", |(_, next)| next);
    }
    reply
}

/// Where thinking ends: the last `</think>` before the first tool call after the first `</think>`.
fn last_think_end(text: &str) -> Option<usize> {
    let first = text.find("</think>")?;
    let calls = text[first..].find("<tool_call>").map_or(text.len(), |at| first + at);
    text[..calls].rfind("</think>")
}

/// What stands between `<tool_call>` and `</tool_call>`: a name, then pairs of tagged keys and values.
pub(crate) fn parse_call(body: &str, strings: &StringArguments) -> Call {
    let name = python::strip(&body[..body.find(['\n', '<']).unwrap_or(body.len())]).to_owned();
    let mut arguments = Vec::new();
    let mut rest = body;
    while let Some((key, value, after)) = next_argument(rest) {
        let is_text = strings.has(&name, key) || Value::parse(value).is_err();
        let value = value.to_owned();
        let value = if is_text { ArgumentValue::Text(value) } else { ArgumentValue::Json(value) };
        arguments.push(Argument { key: key.to_owned(), value });
        rest = after;
    }
    Call { name, arguments }
}

/// The next key, its value, and what follows. A key reaches to the first end tag that a value follows.
fn next_argument(text: &str) -> Option<(&str, &str, &str)> {
    let (_, from_key) = text.split_once("<arg_key>")?;
    let mut at = 0;
    loop {
        let end = at + from_key[at..].find("</arg_key>")?;
        at = end + "</arg_key>".len();
        let value = from_key[at..].trim_start_matches(python::is_space);
        if let Some(value) = value.strip_prefix("<arg_value>") {
            let (value, after) = value.split_once("</arg_value>")?;
            return Some((&from_key[..end], value, after));
        }
    }
}
