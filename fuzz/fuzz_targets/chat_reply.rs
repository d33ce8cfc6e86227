//! Any text as a model's reply, whole and in pieces: the same message, never a panic.
#![no_main]

use glmcore_chat::{Event, ReplyParser, StringArguments, parse_reply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, Vec<String>)| {
    let (in_thinking, pieces) = input;
    let whole = parse_reply(&pieces.concat(), in_thinking, &StringArguments::default());
    let mut parser = ReplyParser::new(in_thinking, StringArguments::default());
    let mut events: Vec<Event> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    let (last, reply) = parser.finish();
    events.extend(last);
    assert_eq!(reply, whole);
    let reasoning: String =
        events.iter().filter_map(|event| if let Event::Reasoning(text) = event { Some(&**text) } else { None }).collect();
    assert_eq!(reasoning, whole.reasoning);
});
