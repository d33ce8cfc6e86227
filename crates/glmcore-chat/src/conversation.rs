//! The formats of GLM-4.5 (which GLM-4.6 shares) and GLM-4.7.
//!
//! Sources: the chat template of GLM-4.6 as llama.cpp carries it; for GLM-4.7 third-party copies of its template, of
//! which two agree.

use crate::message::{Answer, Item, Message, Role, as_text};
use crate::part::{Part, Parts};
use crate::{Error, Value, python};

/// Tokens that end a sampled turn. Every one but the first also opens the turn that follows.
pub const STOP_TOKENS: [&str; 5] =
    ["<|endoftext|>", "<|user|>", "<|observation|>", "<|assistant|>", "<|system|>"];

const TOOLS_PROMPT: &str = "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
    You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n";
const CALL_PROMPT: &str = "</tools>\n\nFor each function call, output the function name and arguments within the \
    following XML format:\n";
const CALL_FORMAT: &str = "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n\
    <arg_value>{arg-value-1}</arg_value>\n<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n\
    ...\n</tool_call>";
const CALL_TAGS: [&str; 6] =
    ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"];

/// How a model wants conversations written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// GLM-4.5 and GLM-4.6: a line break after each role and around each tag.
    #[default]
    Glm45,
    /// GLM-4.7: no line breaks; the prompt opens or closes the thinking.
    Glm47,
}

impl Format {
    fn line_break(self) -> &'static str {
        match self {
            Self::Glm45 => "\n",
            Self::Glm47 => "",
        }
    }
}

/// How a conversation is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The model's format.
    pub format: Format,
    /// False asks for answers without thinking.
    pub thinking: bool,
    /// Drop the reasoning of answers before the last user turn. False needs [`Format::Glm47`].
    pub clear_thinking: bool,
    /// End with the opening of an answer.
    pub generation_prompt: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: Format::default(),
            thinking: true,
            clear_thinking: true,
            generation_prompt: false,
        }
    }
}

/// Renders a whole conversation.
///
/// `messages` is a list of objects with `role` and `content`; `tools` a list of whatever describes a tool. Without a
/// generation prompt a closing answer ends with `<|endoftext|>` as its stop label; an answer that another turn follows
/// has that turn's role token as its label.
///
/// # Errors
///
/// [`Error`] names the message that has an unknown role, or content or a call that cannot be rendered.
pub fn render(
    messages: &Value,
    tools: Option<&Value>,
    options: &Options,
) -> Result<Vec<Part>, Error> {
    if options.format == Format::Glm45 && !options.clear_thinking {
        return Err(Error::KeepsNoReasoning);
    }
    let messages =
        messages.as_array().ok_or(Error::NoList { what: "messages", kind: messages.kind() })?;
    let is_user = |message: &Value| message.get("role").and_then(Value::as_str) == Some("user");
    let last_user = messages.iter().rposition(is_user);

    let mut out = Parts::default();
    open(&mut out, tools, options.format)?;
    let mut conversation = Conversation::new(options.format, options.thinking);
    for (index, message) in messages.iter().enumerate() {
        let keeps_reasoning = !options.clear_thinking || last_user.is_none_or(|last| index > last);
        conversation.write(&mut out, &Message::new(message, index)?, keeps_reasoning)?;
    }
    if options.generation_prompt {
        conversation.write_prompt(&mut out);
    } else {
        conversation.write_end(&mut out);
    }
    Ok(out.finish())
}

/// What stands before the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing that the next turn has to know of.
    Other,
    /// Results of tools, which more of them join.
    Results,
    /// An answer that was written out: the next token is its stop label.
    Answer,
    /// An answer that a model sampled, with its stop token if it came to one.
    Sampled(Option<&'static str>),
}

/// Renders a conversation that only grows: what has been rendered never changes.
///
/// No reasoning is dropped, because dropping it would change what a model has read and written. This is what
/// reinforcement learning and a cache of the prompt want, and for [`Format::Glm47`] it equals [`render`] with
/// `clear_thinking: false`. For [`Format::Glm45`] it equals [`render`] while no reasoning stands before the last user
/// turn.
#[derive(Debug, Clone, Copy)]
pub struct Conversation {
    format: Format,
    thinking: bool,
    before: Before,
    /// Messages so far, for errors.
    num_messages: usize,
}

impl Conversation {
    /// A conversation in which nobody has spoken.
    pub fn new(format: Format, thinking: bool) -> Self {
        Self { format, thinking, before: Before::Other, num_messages: 0 }
    }

    /// The parts before the first message.
    ///
    /// # Errors
    ///
    /// [`Error::NoList`] if `tools` is no list.
    pub fn opening(&self, tools: Option<&Value>) -> Result<Vec<Part>, Error> {
        let mut out = Parts::default();
        open(&mut out, tools, self.format)?;
        Ok(out.finish())
    }

    /// The parts of one more message.
    ///
    /// # Errors
    ///
    /// [`Error`] names what cannot be rendered; the conversation stays as it was.
    pub fn add(&mut self, message: &Value) -> Result<Vec<Part>, Error> {
        let mut out = Parts::default();
        self.write(&mut out, &Message::new(message, self.num_messages)?, true)?;
        Ok(out.finish())
    }

    /// The parts after which a model samples its answer.
    pub fn prompt(&self) -> Vec<Part> {
        let mut out = Parts::default();
        self.write_prompt(&mut out);
        out.finish()
    }

    /// Notes that a model has sampled an answer after [`Self::prompt`], and the token of [`STOP_TOKENS`] it ends with.
    pub fn add_sampled(&mut self, stop: Option<&'static str>) {
        self.before = Before::Sampled(stop);
        self.num_messages += 1;
    }

    /// The stop label of a written answer that nothing follows. A sampled answer has the end it was sampled with.
    pub fn ending(&self) -> Vec<Part> {
        let mut out = Parts::default();
        self.write_end(&mut out);
        out.finish()
    }

    fn write_prompt(&self, out: &mut Parts) {
        self.open_turn(out, Role::Assistant);
        match (self.format, self.thinking) {
            (Format::Glm45, true) => {}
            (Format::Glm45, false) => {
                out.text("\n");
                out.special("<think>");
                out.special("</think>");
            }
            (Format::Glm47, true) => out.special("<think>"),
            (Format::Glm47, false) => out.special("</think>"),
        }
    }

    fn write_end(&self, out: &mut Parts) {
        if self.before == Before::Answer {
            out.special_as("<|endoftext|>", true);
        }
    }

    /// A role token; after a written answer it is that answer's stop label, a sampled one may have ended with it.
    fn open_turn(&self, out: &mut Parts, role: Role) {
        if self.before != Before::Sampled(Some(role.token())) {
            out.special_as(role.token(), self.before == Before::Answer);
        }
    }

    fn write(
        &mut self,
        out: &mut Parts,
        message: &Message<'_>,
        keeps_reasoning: bool,
    ) -> Result<(), Error> {
        match message.role {
            Role::System => {
                let text = message.text()?;
                self.open_turn(out, Role::System);
                out.text(self.format.line_break());
                out.text(&text);
            }
            Role::User => {
                let items = message.items()?;
                self.open_turn(out, Role::User);
                self.write_user(out, &items);
            }
            Role::Assistant => {
                let answer = message.answer()?;
                self.open_turn(out, Role::Assistant);
                out.learned = true;
                self.write_answer(out, &answer, keeps_reasoning);
                out.learned = false;
            }
            Role::Tool => {
                let results = message.results()?;
                if self.before != Before::Results {
                    self.open_turn(out, Role::Tool);
                }
                let line_break = self.format.line_break();
                for result in &results {
                    out.text(line_break);
                    out.special("<tool_response>");
                    out.text(line_break);
                    out.text(result);
                    out.text(line_break);
                    out.special("</tool_response>");
                }
            }
        }
        self.before = match message.role {
            Role::Assistant => Before::Answer,
            Role::Tool => Before::Results,
            _ => Before::Other,
        };
        self.num_messages += 1;
        Ok(())
    }

    fn write_user(&self, out: &mut Parts, items: &[Item<'_>]) {
        out.text(self.format.line_break());
        let mut tail = String::new(); // text after the last image, to see how the turn ends
        for item in items {
            let media: [&'static str; 3] = match item {
                Item::Text(text) => {
                    out.text(text);
                    tail.push_str(text);
                    continue;
                }
                Item::Image => ["<|begin_of_image|>", "<|image|>", "<|end_of_image|>"],
                Item::Video => ["<|begin_of_video|>", "<|video|>", "<|end_of_video|>"],
            };
            for token in media {
                out.special(token);
            }
            tail.clear();
        }
        if self.format == Format::Glm45 && !self.thinking && !tail.ends_with("/nothink") {
            out.special("/nothink");
        }
    }

    fn write_answer(&self, out: &mut Parts, answer: &Answer<'_>, keeps_reasoning: bool) {
        let reasoning = if keeps_reasoning { answer.stripped_reasoning() } else { "" };
        match self.format {
            Format::Glm45 => {
                out.text("\n");
                out.special("<think>");
                out.text(reasoning);
                out.special("</think>");
            }
            // The tag right after the role comes from the generation prompt: no model samples it.
            Format::Glm47 if keeps_reasoning && !answer.reasoning.is_empty() => {
                out.special_as("<think>", false);
                out.text(reasoning);
                out.special("</think>");
            }
            Format::Glm47 => out.special_as("</think>", false),
        }
        let line_break = self.format.line_break();
        let content = python::strip(&answer.content);
        if !content.is_empty() {
            out.text(line_break);
            out.text(content);
        }
        for call in &answer.calls {
            out.text(line_break);
            out.special("<tool_call>");
            out.text(call.name);
            out.text(line_break);
            for (key, value) in call.arguments.iter() {
                out.special("<arg_key>");
                out.text(key);
                out.special("</arg_key>");
                out.text(line_break);
                out.special("<arg_value>");
                out.text(&as_text(value));
                out.special("</arg_value>");
                out.text(line_break);
            }
            out.special("</tool_call>");
        }
    }
}

/// What every conversation starts with: the prefix tokens and the tools.
fn open(out: &mut Parts, tools: Option<&Value>, format: Format) -> Result<(), Error> {
    out.special("[gMASK]");
    out.special("<sop>");
    let Some(tools) = tools.filter(|tools| tools.is_true()) else { return Ok(()) };
    let tools = tools.as_array().ok_or(Error::NoList { what: "tools", kind: tools.kind() })?;
    out.special("<|system|>");
    out.text(TOOLS_PROMPT);
    for tool in tools {
        out.write(|text| tool.write(text));
        out.text("\n");
    }
    out.text(CALL_PROMPT);
    match format {
        Format::Glm45 => out.tagged(CALL_FORMAT, &CALL_TAGS),
        Format::Glm47 => out.tagged(&CALL_FORMAT.replace('\n', ""), &CALL_TAGS),
    }
    Ok(())
}
