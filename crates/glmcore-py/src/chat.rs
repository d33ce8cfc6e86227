//! Binding of `glmcore-chat`.

use std::sync::{Arc, Mutex};

use glmcore_chat::{
    ArgumentValue, Call, Conversation, Event, Format, Options, Part, Piece, Reply, ReplyParser,
    STOP_TOKENS, StringArguments, Template, Value, parse_reply, render,
};
use glmcore_tokenizer::{Special, Tokenizer};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::error::{OrRaise, RequestError};
use crate::tokenizer::PyTokenizer;

/// Ids and whether each is learned.
type ChatTokens<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<u8>>);
/// Name, and key, value and whether the value is JSON of each argument.
type PlainCall = (String, Vec<(String, String, bool)>);
/// Reasoning, content, calls, and whether the thinking has come to its end.
type PlainReply = (String, String, Vec<PlainCall>, bool);
/// Kind, text and call of an event.
type PlainEvent = (&'static str, String, Option<PlainCall>);

/// Ids of a conversation, given as JSON.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "Python's side names them")]
fn render_chat<'py>(
    py: Python<'py>,
    tokenizer: &PyTokenizer,
    messages: &str,
    tools: Option<&str>,
    format: &str,
    thinking: bool,
    clear_thinking: bool,
    generation_prompt: bool,
) -> PyResult<ChatTokens<'py>> {
    let options =
        Options { format: read_format(format)?, thinking, clear_thinking, generation_prompt };
    let tokenizer = tokenizer.shared();
    let (ids, mask) = py.detach(|| {
        let messages = Value::parse(messages).or_raise()?;
        let tools = tools.map(Value::parse).transpose().or_raise()?;
        tokens(&tokenizer, &render(&messages, tools.as_ref(), &options).or_raise()?)
    })?;
    Ok((ids.into_pyarray(py), mask.into_pyarray(py)))
}

/// A reply taken apart; `tools` as JSON.
#[pyfunction]
#[pyo3(name = "parse_reply")]
fn parse(
    py: Python<'_>,
    text: &str,
    in_thinking: bool,
    tools: Option<&str>,
) -> PyResult<PlainReply> {
    let strings = string_arguments(tools)?;
    Ok(plain_reply(py.detach(|| parse_reply(text, in_thinking, &strings))))
}

/// A conversation that only grows.
#[pyclass(frozen, name = "CoreConversation", module = "glmcore._core")]
struct PyConversation {
    tokenizer: Arc<Tokenizer>,
    inner: Mutex<Conversation>,
}

impl PyConversation {
    fn with<'py>(
        &self,
        py: Python<'py>,
        work: impl FnOnce(&mut Conversation) -> Result<Vec<Part>, glmcore_chat::Error>,
    ) -> PyResult<ChatTokens<'py>> {
        let parts = work(&mut self.inner.lock().expect("no holder panics")).or_raise()?;
        let (ids, mask) = tokens(&self.tokenizer, &parts)?;
        Ok((ids.into_pyarray(py), mask.into_pyarray(py)))
    }
}

#[pymethods]
impl PyConversation {
    /// A conversation in which nobody has spoken.
    #[new]
    fn new(tokenizer: &PyTokenizer, format: &str, thinking: bool) -> PyResult<Self> {
        let inner = Mutex::new(Conversation::new(read_format(format)?, thinking));
        Ok(Self { tokenizer: tokenizer.shared(), inner })
    }

    /// Ids before the first message; `tools` as JSON.
    fn opening<'py>(&self, py: Python<'py>, tools: Option<&str>) -> PyResult<ChatTokens<'py>> {
        let tools = tools.map(Value::parse).transpose().or_raise()?;
        self.with(py, |conversation| conversation.opening(tools.as_ref()))
    }

    /// Ids of one more message, given as JSON.
    fn add<'py>(&self, py: Python<'py>, message: &str) -> PyResult<ChatTokens<'py>> {
        let message = Value::parse(message).or_raise()?;
        self.with(py, |conversation| conversation.add(&message))
    }

    /// Ids after which a model samples its answer.
    fn prompt<'py>(&self, py: Python<'py>) -> PyResult<ChatTokens<'py>> {
        self.with(py, |conversation| Ok(conversation.prompt()))
    }

    /// Note that a model has sampled an answer, and the token it ended with.
    fn add_sampled(&self, last_token: &str) {
        let stop = STOP_TOKENS.into_iter().find(|&token| token == last_token);
        self.inner.lock().expect("no holder panics").add_sampled(stop);
    }

    /// The stop label of a written answer that nothing follows.
    fn ending<'py>(&self, py: Python<'py>) -> PyResult<ChatTokens<'py>> {
        self.with(py, |conversation| Ok(conversation.ending()))
    }
}

/// A reply taken apart while it arrives.
#[pyclass(frozen, name = "CoreReplyParser", module = "glmcore._core")]
struct PyReplyParser {
    inner: Mutex<Option<ReplyParser>>,
}

#[pymethods]
impl PyReplyParser {
    /// A parser before the first character; `tools` as JSON.
    #[new]
    fn new(in_thinking: bool, tools: Option<&str>) -> PyResult<Self> {
        let parser = ReplyParser::new(in_thinking, string_arguments(tools)?);
        Ok(Self { inner: Mutex::new(Some(parser)) })
    }

    /// Take more text and tell what it brings.
    fn push(&self, text: &str) -> PyResult<Vec<PlainEvent>> {
        let mut parser = self.inner.lock().expect("no holder panics");
        let parser = parser.as_mut().ok_or_else(finished)?;
        Ok(parser.push(text).into_iter().map(plain_event).collect())
    }

    /// End the text: what was held back, and the whole reply.
    fn finish(&self) -> PyResult<(Vec<PlainEvent>, PlainReply)> {
        let parser = self.inner.lock().expect("no holder panics").take().ok_or_else(finished)?;
        let (events, reply) = parser.finish();
        Ok((events.into_iter().map(plain_event).collect(), plain_reply(reply)))
    }
}

/// The chat template of any model.
#[pyclass(frozen, name = "CoreChatTemplate", module = "glmcore._core")]
struct PyChatTemplate {
    inner: Template,
}

#[pymethods]
impl PyChatTemplate {
    /// Read a template.
    #[new]
    fn new(source: &str) -> PyResult<Self> {
        Ok(Self { inner: Template::parse(source).or_raise()? })
    }

    /// Text of a conversation; `variables` as JSON.
    fn render(&self, py: Python<'_>, variables: &str) -> PyResult<String> {
        py.detach(|| {
            let variables = Value::parse(variables).or_raise()?;
            Ok(self.inner.render(&variables).or_raise()?.text)
        })
    }

    /// Ids of a conversation; `variables` as JSON.
    fn tokens<'py>(
        &self,
        py: Python<'py>,
        tokenizer: &PyTokenizer,
        variables: &str,
    ) -> PyResult<ChatTokens<'py>> {
        let tokenizer = tokenizer.shared();
        let (ids, mask) = py.detach(|| {
            let rendered = self.inner.render(&Value::parse(variables).or_raise()?).or_raise()?;
            let (ids, spans) = tokenizer.encode_with_spans(&rendered.text, Special::Parse);
            let mut learned = rendered.learned.iter().peekable();
            let mask = spans.iter().map(|span| {
                while learned.next_if(|range| range.end <= span.start).is_some() {}
                u8::from(learned.peek().is_some_and(|range| range.start < span.end))
            });
            let mask = mask.collect::<Vec<u8>>();
            PyResult::Ok((bytemuck::cast_vec::<u32, i32>(ids), mask))
        })?;
        Ok((ids.into_pyarray(py), mask.into_pyarray(py)))
    }
}

fn finished() -> PyErr {
    RequestError::new_err("the reply has been finished")
}

fn read_format(name: &str) -> PyResult<Format> {
    match name {
        "glm-4.5" => Ok(Format::Glm45),
        "glm-4.7" => Ok(Format::Glm47),
        _ => Err(RequestError::new_err(format!("format must be glm-4.5 or glm-4.7, got {name:?}"))),
    }
}

fn string_arguments(tools: Option<&str>) -> PyResult<StringArguments> {
    let tools = tools.map(Value::parse).transpose().or_raise()?;
    Ok(tools.map_or_else(StringArguments::default, |tools| StringArguments::of_tools(&tools)))
}

fn tokens(tokenizer: &Tokenizer, parts: &[Part]) -> PyResult<(Vec<i32>, Vec<u8>)> {
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for part in parts {
        match &part.piece {
            Piece::Special(name) => {
                ids.push(tokenizer.token_id(name.as_bytes()).ok_or_else(|| {
                    RequestError::new_err(format!("the tokenizer has no token {name:?}"))
                })?);
            }
            Piece::Text(text) => ids.extend(tokenizer.encode(text, Special::AsText)),
        }
        mask.resize(ids.len(), u8::from(part.learned));
    }
    Ok((bytemuck::cast_vec(ids), mask))
}

fn plain_call(call: Call) -> PlainCall {
    let argument = |argument: glmcore_chat::Argument| match argument.value {
        ArgumentValue::Text(value) => (argument.key, value, false),
        ArgumentValue::Json(value) => (argument.key, value, true),
    };
    (call.name, call.arguments.into_iter().map(argument).collect())
}

fn plain_reply(reply: Reply) -> PlainReply {
    let calls = reply.calls.into_iter().map(plain_call).collect();
    (reply.reasoning, reply.content, calls, reply.finished_thinking)
}

fn plain_event(event: Event) -> PlainEvent {
    match event {
        Event::Reasoning(text) => ("reasoning", text, None),
        Event::Content(text) => ("content", text, None),
        Event::ContentWithdrawn => ("content_withdrawn", String::new(), None),
        Event::CallStart { name, .. } => ("call_start", name, None),
        Event::Call { call, .. } => ("call", call.name.clone(), Some(plain_call(call))),
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("STOP_TOKENS", STOP_TOKENS.to_vec())?;
    module.add_function(wrap_pyfunction!(render_chat, module)?)?;
    module.add_function(wrap_pyfunction!(parse, module)?)?;
    module.add_class::<PyConversation>()?;
    module.add_class::<PyReplyParser>()?;
    module.add_class::<PyChatTemplate>()
}
