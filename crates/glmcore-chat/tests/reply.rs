//! The stream parser against the plain reading of the whole text.

use glmcore_chat::{
    Conversation, Event, Format, Options, Part, Reply, ReplyParser, StringArguments, Value,
    parse_reply, render,
};
use proptest::prelude::*;

/// Replies of tags, halves of tags, white space and text in any order.
fn reply() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<",
        "</",
        "<tool",
        "</thi",
        "think>",
        "\n",
        " ",
        "a",
        "f",
        "1",
        "[1, 2]",
        "中",
        "\"",
    ]);
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

fn add(reply: &mut Reply, event: Event) {
    match event {
        Event::Reasoning(more) => reply.reasoning += &more,
        Event::Content(more) => reply.content += &more,
        Event::ContentWithdrawn => reply.content.clear(),
        Event::CallStart { .. } => {}
        Event::Call { call, .. } => reply.calls.push(call),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn however_a_reply_is_cut_its_deltas_make_the_whole(text in reply(), cuts in prop::collection::vec(1_usize..5, 1..40), in_thinking in any::<bool>()) {
        let whole = parse_reply(&text, in_thinking, &StringArguments::default());
        let mut parser = ReplyParser::new(in_thinking, StringArguments::default());
        let mut told = Reply { finished_thinking: whole.finished_thinking, ..Reply::default() };
        let (mut rest, mut sizes) = (text.as_str(), cuts.iter().cycle());
        while !rest.is_empty() {
            let end = rest.char_indices().map(|(at, _)| at).nth(*sizes.next().unwrap()).unwrap_or(rest.len());
            for event in parser.push(&rest[..end]) {
                add(&mut told, event);
            }
            rest = &rest[end..];
        }
        let (events, last) = parser.finish();
        for event in events {
            add(&mut told, event);
        }
        prop_assert_eq!(&last, &whole);
        prop_assert_eq!(told, whole);
    }

    #[test]
    fn any_text_is_some_reply_and_some_json_or_none(text in any::<String>()) {
        parse_reply(&text, false, &StringArguments::default());
        drop(Value::parse(&text));
    }

    #[test]
    fn turn_by_turn_equals_the_whole(contents in prop::collection::vec(("[ab<>\n]{0,6}", "[cd]{0,3}"), 1..6), thinking in any::<bool>()) {
        let mut messages = Vec::new();
        for (question, answer) in &contents {
            messages.push(format!(r#"{{"role": "user", "content": {question:?}}}"#));
            messages.push(format!(r#"{{"role": "assistant", "content": {answer:?}, "reasoning_content": "r"}}"#));
        }
        let options = Options { format: Format::Glm47, thinking, clear_thinking: false, ..Options::default() };
        let whole = render(&Value::parse(&format!("[{}]", messages.join(","))).unwrap(), None, &options).unwrap();
        let mut conversation = Conversation::new(Format::Glm47, thinking);
        let mut parts = conversation.opening(None).unwrap();
        for message in &messages {
            parts.extend(conversation.add(&Value::parse(message).unwrap()).unwrap());
        }
        parts.extend(conversation.ending());
        let joined = |parts: &[Part]| format!("{parts:?}");
        prop_assert_eq!(joined(&parts), joined(&whole));
    }
}
