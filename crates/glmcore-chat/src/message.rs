//! Messages as callers give them: checked, and taken apart without a copy.

use std::borrow::Cow;

use crate::{Error, Value, python};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// The token that opens a turn.
    pub(crate) fn token(self) -> &'static str {
        match self {
            Self::System => "<|system|>",
            Self::User => "<|user|>",
            Self::Assistant => "<|assistant|>",
            Self::Tool => "<|observation|>",
        }
    }
}

/// A part of what a user says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item<'v> {
    Text(&'v str),
    Image,
    Video,
}

/// What an assistant says.
#[derive(Debug)]
pub(crate) struct Answer<'v> {
    /// As it was given: an empty reasoning and one of white space differ in some formats.
    pub(crate) reasoning: Cow<'v, str>,
    pub(crate) content: Cow<'v, str>,
    pub(crate) calls: Vec<ToolCall<'v>>,
}

/// A call that an assistant asks for.
#[derive(Debug)]
pub(crate) struct ToolCall<'v> {
    pub(crate) name: &'v str,
    pub(crate) arguments: Cow<'v, [(String, Value)]>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'v> {
    fields: &'v Value,
    /// Number in the conversation, for errors.
    index: usize,
    pub(crate) role: Role,
}

impl<'v> Message<'v> {
    pub(crate) fn new(fields: &'v Value, index: usize) -> Result<Self, Error> {
        let role = match fields.get("role").and_then(Value::as_str) {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            _ => {
                let mut role = String::new();
                fields.get("role").unwrap_or(&Value::Null).write(&mut role);
                return Err(Error::Role { index, role });
            }
        };
        Ok(Self { fields, index, role })
    }

    /// Parts of what a user says. Absent content is none.
    pub(crate) fn items(&self) -> Result<Vec<Item<'v>>, Error> {
        match self.fields.get("content") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![Item::Text(text)]),
            Some(Value::Array(items)) => items.iter().map(|item| self.item(item)).collect(),
            Some(other) => Err(Error::Content { index: self.index, kind: other.kind() }),
        }
    }

    fn item(&self, item: &'v Value) -> Result<Item<'v>, Error> {
        let wrong = Error::Part { index: self.index };
        if let Some(text) = item.as_str() {
            return Ok(Item::Text(text));
        }
        match item.get("type").and_then(Value::as_str) {
            Some("text") => item.get("text").and_then(Value::as_str).map(Item::Text).ok_or(wrong),
            Some("image" | "image_url") if self.role == Role::User => Ok(Item::Image),
            Some("video" | "video_url") if self.role == Role::User => Ok(Item::Video),
            _ => Err(wrong),
        }
    }

    /// The content of a message that holds nothing but text.
    pub(crate) fn text(&self) -> Result<Cow<'v, str>, Error> {
        let items = self.items()?;
        let texts = || {
            items
                .iter()
                .filter_map(|item| if let Item::Text(text) = item { Some(*text) } else { None })
        };
        Ok(match items.as_slice() {
            [] => Cow::Borrowed(""),
            [Item::Text(text)] => Cow::Borrowed(text),
            _ => Cow::Owned(texts().collect()),
        })
    }

    /// What an assistant says. Without `reasoning_content`, reasoning is what content has before `</think>`.
    pub(crate) fn answer(&self) -> Result<Answer<'v>, Error> {
        let content = self.text()?;
        let calls = self.calls()?;
        if let Some(reasoning) = self.fields.get("reasoning_content").and_then(Value::as_str) {
            return Ok(Answer { reasoning: Cow::Borrowed(reasoning), content, calls });
        }
        let Some((before, after)) = content.split_once("</think>") else {
            return Ok(Answer { reasoning: Cow::Borrowed(""), content, calls });
        };
        let before = before.trim_end_matches('\n');
        let reasoning = before.rsplit_once("<think>").map_or(before, |(_, thought)| thought);
        let last = after.rsplit_once("</think>").map_or(after, |(_, last)| last);
        Ok(Answer {
            reasoning: Cow::Owned(reasoning.trim_start_matches('\n').to_owned()),
            content: Cow::Owned(last.trim_start_matches('\n').to_owned()),
            calls,
        })
    }

    fn calls(&self) -> Result<Vec<ToolCall<'v>>, Error> {
        match self.fields.get("tool_calls") {
            Some(Value::Array(calls)) => calls.iter().map(|call| self.call(call)).collect(),
            Some(other) if other.is_true() => Err(Error::Call {
                index: self.index,
                problem: "outside a list: give tool_calls a list",
            }),
            _ => Ok(Vec::new()),
        }
    }

    fn call(&self, call: &'v Value) -> Result<ToolCall<'v>, Error> {
        let wrong = |problem| Error::Call { index: self.index, problem };
        let function = call.get("function").filter(|function| function.is_true()).unwrap_or(call);
        let name = function.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| wrong("without a name"))?;
        let arguments = match function.get("arguments") {
            Some(Value::Object(entries)) => Cow::Borrowed(entries.as_slice()),
            Some(Value::String(text)) => match Value::parse(text) {
                Ok(Value::Object(entries)) => Cow::Owned(entries),
                _ => return Err(wrong("whose arguments are text that is no JSON object")),
            },
            _ => return Err(wrong("whose arguments are no object")),
        };
        Ok(ToolCall { name, arguments })
    }

    /// Each result that a tool message holds.
    pub(crate) fn results(&self) -> Result<Vec<Cow<'v, str>>, Error> {
        match self.fields.get("content") {
            Some(Value::String(text)) => Ok(vec![Cow::Borrowed(text)]),
            Some(Value::Array(items)) => Ok(items.iter().map(result).collect()),
            other => {
                let kind = other.unwrap_or(&Value::Null).kind();
                Err(Error::Content { index: self.index, kind })
            }
        }
    }
}

/// A tool's output: text as it is, anything else as JSON.
fn result(item: &Value) -> Cow<'_, str> {
    as_text(item.get("output").unwrap_or(item))
}

/// Text as it is, anything else as JSON.
pub(crate) fn as_text(value: &Value) -> Cow<'_, str> {
    value.as_str().map_or_else(
        || {
            let mut json = String::new();
            value.write(&mut json);
            Cow::Owned(json)
        },
        Cow::Borrowed,
    )
}

impl Answer<'_> {
    pub(crate) fn stripped_reasoning(&self) -> &str {
        python::strip(&self.reasoning)
    }
}
