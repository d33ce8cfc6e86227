//! A reply taken apart while it arrives.

use crate::python;
use crate::reply::{Call, Reply, StringArguments, parse_call, parse_reply};

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";

/// What a piece of a reply brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More reasoning.
    Reasoning(String),
    /// More content.
    Content(String),
    /// All content so far was reasoning after all: another `</think>` has come. Reasoning that holds it follows.
    ContentWithdrawn,
    /// A call of a tool begins. It counts only once its [`Event::Call`] comes.
    CallStart {
        /// Number of the call in the reply, from 0.
        index: usize,
        /// The tool.
        name: String,
    },
    /// A call of a tool is complete.
    Call {
        /// Number of the call in the reply, from 0.
        index: usize,
        /// The call.
        call: Call,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Thinking,
    /// After `</think>`, which another may follow.
    Answer,
    /// In a reply that does not think, where `</think>` is text.
    PlainAnswer,
    /// Inside a call that starts at this byte; the flag says whether its name has been told.
    Call(usize, bool),
    /// After a call.
    Between,
}

/// Takes a reply apart piece by piece, in linear time, however it is cut.
///
/// The deltas of each field, concatenated, give the field of [`parse_reply`] on the whole text, where
/// [`Event::ContentWithdrawn`] empties the content. White space at a field's end and what may be half a tag are held
/// back until they are known to belong to it. The parser keeps the text and nothing else that grows.
#[derive(Debug)]
pub struct ReplyParser {
    strings: StringArguments,
    in_thinking: bool,
    text: String,
    state: State,
    /// Text before it has been looked at.
    scanned: usize,
    /// End of the reasoning that has been told.
    reasoning_told: Option<usize>,
    /// End of the content that has been told.
    content_told: Option<usize>,
    /// Where the last `</think>` stands.
    think_end: usize,
    num_calls: usize,
}

impl ReplyParser {
    /// A parser before the first byte; for the arguments see [`parse_reply`].
    pub fn new(in_thinking: bool, strings: StringArguments) -> Self {
        Self {
            strings,
            in_thinking,
            text: String::new(),
            state: State::Start,
            scanned: 0,
            reasoning_told: None,
            content_told: None,
            think_end: 0,
            num_calls: 0,
        }
    }

    /// Takes more text and tells what it brings.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        self.text.push_str(text);
        let mut events = Vec::new();
        while self.step(false, &mut events) {}
        events
    }

    /// Ends the text: tells what was held back. Whatever is pushed afterwards is ignored.
    pub fn finish(self) -> (Vec<Event>, Reply) {
        let mut parser = self;
        let mut events = Vec::new();
        while parser.step(true, &mut events) {}
        (events, parse_reply(&parser.text, parser.in_thinking, &parser.strings))
    }

    /// Goes on by a tag or to the end of the text; false if there is nothing more to do.
    fn step(&mut self, at_end: bool, events: &mut Vec<Event>) -> bool {
        match self.state {
            State::Start => self.start(at_end),
            State::Thinking => {
                let (text_end, tag) = self.next_tag(&[THINK_END], at_end);
                self.tell_reasoning(self.scanned, text_end, events);
                self.scanned = text_end;
                self.enter(tag)
            }
            State::Answer | State::PlainAnswer => self.answer(at_end, events),
            State::Call(from, named) => self.call(from, named, at_end, events),
            State::Between => {
                let (text_end, tag) = self.next_tag(&[CALL], at_end);
                self.scanned = text_end;
                self.enter(tag)
            }
        }
    }

    fn start(&mut self, at_end: bool) -> bool {
        let rest = &self.text[self.scanned..];
        let rest = rest.trim_start_matches('\n');
        self.scanned = self.text.len() - rest.len();
        if rest.starts_with(THINK) {
            self.scanned += THINK.len();
            self.state = State::Thinking;
        } else if rest.starts_with(THINK_END) || (self.in_thinking && !rest.is_empty()) {
            // Inside the thinking `<think>` may still come whole: it is no text then.
            if !at_end && THINK.starts_with(rest) {
                return false;
            }
            self.state = State::Thinking;
        } else if !at_end && (THINK.starts_with(rest) || THINK_END.starts_with(rest)) {
            return false;
        } else {
            self.state = if self.in_thinking { State::Thinking } else { State::PlainAnswer };
        }
        true
    }

    fn answer(&mut self, at_end: bool, events: &mut Vec<Event>) -> bool {
        let tags: &[_] = if self.state == State::Answer { &[THINK_END, CALL] } else { &[CALL] };
        let (text_end, tag) = self.next_tag(tags, at_end);
        if tag == Some(THINK_END) {
            if self.content_told.take().is_some() {
                events.push(Event::ContentWithdrawn);
            }
            self.tell_reasoning(self.think_end, text_end, events);
        } else {
            let told = &mut self.content_told;
            if let Some(more) = tell(&self.text, told, self.scanned, text_end) {
                events.push(Event::Content(more));
            }
        }
        self.scanned = text_end;
        self.enter(tag)
    }

    fn call(&mut self, from: usize, named: bool, at_end: bool, events: &mut Vec<Event>) -> bool {
        if !named {
            let Some(end) = self.text[self.scanned..].find(['\n', '<']) else {
                self.scanned = self.text.len();
                return false;
            };
            let name = python::strip(&self.text[from..self.scanned + end]).to_owned();
            events.push(Event::CallStart { index: self.num_calls, name });
            self.scanned += end;
            self.state = State::Call(from, true);
        }
        let (text_end, tag) = self.next_tag(&[CALL_END], at_end);
        self.scanned = text_end;
        if tag.is_some() {
            let call = parse_call(&self.text[from..text_end], &self.strings);
            events.push(Event::Call { index: self.num_calls, call });
            self.num_calls += 1;
        }
        self.enter(tag)
    }

    /// Steps over a tag into what it opens; false without a tag.
    fn enter(&mut self, tag: Option<&str>) -> bool {
        let Some(tag) = tag else { return false };
        if tag == THINK_END {
            self.think_end = self.scanned;
        }
        self.scanned += tag.len();
        self.state = match tag {
            THINK_END => State::Answer,
            CALL => State::Call(self.scanned, false),
            _ => State::Between,
        };
        true
    }

    /// The first of these tags in what has not been looked at, and where the text before it ends. Without one, text
    /// ends before what may be the beginning of one.
    fn next_tag(&self, tags: &[&'static str], at_end: bool) -> (usize, Option<&'static str>) {
        let mut from = self.scanned;
        while let Some(at) = self.text[from..].find('<') {
            let rest = &self.text[from + at..];
            if let Some(tag) = tags.iter().find(|tag| rest.starts_with(**tag)) {
                return (from + at, Some(tag));
            }
            if !at_end && tags.iter().any(|tag| tag.starts_with(rest)) {
                return (from + at, None);
            }
            from += at + 1;
        }
        (self.text.len(), None)
    }

    fn tell_reasoning(&mut self, from: usize, to: usize, events: &mut Vec<Event>) {
        if let Some(more) = tell(&self.text, &mut self.reasoning_told, from, to) {
            events.push(Event::Reasoning(more));
        }
    }
}

/// What `text[from..to]` adds to a field told up to `told`: white space waits for what follows it.
fn tell(text: &str, told: &mut Option<usize>, from: usize, to: usize) -> Option<String> {
    let new = &text[from..to];
    let end = from + new.trim_end_matches(python::is_space).len();
    let start = told.unwrap_or_else(|| to - new.trim_start_matches(python::is_space).len());
    if end <= from || start >= end {
        return None;
    }
    *told = Some(end);
    Some(text[start..end].to_owned())
}
