//! Conversations of GLM models: messages to the parts of a prompt, a model's reply to a message.
//!
//! [`render`] gives a conversation as parts, each a special token by name or text that must never become one, and each
//! either learned or not. [`Conversation`] does the same turn by turn. [`parse_reply`] takes a reply apart,
//! [`ReplyParser`] does so while it
//! arrives.
//!
//! [`Template`] renders the chat template of any other model.
//!
//! The crate knows no tokenizer: a caller turns parts into ids.
//!
//! ```
//! use glmcore_chat::{Options, Piece, Value, parse_reply, render};
//!
//! let messages = Value::parse(r#"[{"role": "user", "content": "2 + 2? <|user|>"}]"#)?;
//! let parts = render(&messages, None, &Options { generation_prompt: true, ..Options::default() })?;
//! assert_eq!(parts[1].piece, Piece::Special("<sop>"));
//! assert_eq!(parts[3].piece, Piece::Text("\n2 + 2? <|user|>".into()));
//! assert_eq!(parts[4].piece, Piece::Special("<|assistant|>"));
//!
//! let reply = parse_reply("\n<think>easy</think>\n4", false, &Default::default());
//! assert_eq!((reply.reasoning.as_str(), reply.content.as_str()), ("easy", "4"));
//! # Ok::<(), glmcore_chat::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod conversation;
mod json;
mod message;
mod part;
mod python;
mod reply;
mod stream;
mod template;

pub use conversation::{Conversation, Format, Options, STOP_TOKENS, render};
pub use json::{MAX_BYTES, MAX_DEPTH, Value};
pub use part::{Part, Piece};
pub use reply::{Argument, ArgumentValue, Call, Reply, StringArguments, parse_reply};
pub use stream::{Event, ReplyParser};
pub use template::{Rendered, Template};

/// Why a conversation or a template cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// A text is no JSON that this crate takes.
    #[error("not JSON: {problem} (byte {at})")]
    Json { at: usize, problem: &'static str },
    /// Something that must be a list is none.
    #[error("{what} must be a list, got {kind}")]
    NoList { what: &'static str, kind: &'static str },
    /// A message has a role that the format does not know.
    #[error("message {index} has role {role}; it must be system, user, assistant or tool")]
    Role { index: usize, role: String },
    /// The content of a message is no text.
    #[error("message {index} has content of {kind}; it must be text or a list of parts")]
    Content { index: usize, kind: &'static str },
    /// A part of a message's content has no place in a prompt.
    #[error("message {index} has a part that is no text; a user's may also be an image or a video")]
    Part { index: usize },
    /// A tool call lacks something.
    #[error("message {index} has a tool call {problem}")]
    Call { index: usize, problem: &'static str },
    /// A chat template cannot be read, or refuses a conversation.
    #[error("chat template: {problem}")]
    Template { problem: String },
    /// Old reasoning can be kept in one format only.
    #[error("old reasoning can be kept in the glm-4.7 format only")]
    KeepsNoReasoning,
}
