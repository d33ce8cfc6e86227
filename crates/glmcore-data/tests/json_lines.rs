//! The texts of JSON lines are those that serde reads.

use std::fs;

use glmcore_data::{Error, JsonLines};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Pieces of lines: what the quick reader knows, what it leaves to the other one, and what nobody may take.
fn line() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "\"",
        "\"",
        "text",
        "\"text\"",
        ":",
        ",",
        " ",
        "\t",
        "\\",
        "\\n",
        "\\\"",
        "\\u00e4",
        "\\ud83d\\ude00",
        "\\ud800",
        "ä",
        "世",
        "a long stretch of letters",
        "0",
        "1",
        "05",
        "-1",
        "1.5",
        "1e5",
        "true",
        "null",
        "[",
        "]",
        "{\"text\": \"",
        "\"}",
        "\u{1}",
        "\u{7f}",
    ]);
    prop::collection::vec(piece, 1..10).prop_map(|pieces| pieces.concat())
}

fn record() -> impl Strategy<Value = String> {
    let other = prop_oneof![
        any::<u64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        any::<String>().prop_map(|text| json!(text)),
        Just(json!(null)),
        Just(json!({"text": ["nested"]})),
    ];
    (any::<String>(), any::<String>(), other)
        .prop_map(|(text, key, other)| json!({"text": text, key: other}).to_string())
}

/// What serde's own values say is in a line.
fn expected(line: &str) -> Option<String> {
    match serde_json::from_str::<Value>(line).ok()? {
        Value::Object(mut map) => match map.remove("text")? {
            Value::String(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

proptest! {
    #[test]
    fn texts_are_those_of_serde(lines in prop::collection::vec(prop_oneof![line(), record()], 0..6), threads in 1_usize..4) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, lines.join("\n")).unwrap();
        let file = JsonLines::open(&path, "text").unwrap();
        let found = file.texts(0..file.num_bytes(), threads);
        let wanted: Vec<_> = lines.iter().filter(|line| !line.trim_ascii().is_empty()).map(|line| expected(line)).collect();
        match wanted.iter().position(Option::is_none) {
            None => {
                let wanted: Vec<String> = wanted.into_iter().flatten().collect();
                prop_assert_eq!(found.unwrap().iter().map(str::to_owned).collect::<Vec<_>>(), wanted);
            }
            Some(_) => prop_assert!(matches!(found, Err(Error::Line { .. })), "{:?}", found),
        }
    }

    #[test]
    fn stretches_of_lines_are_the_whole(lines in prop::collection::vec(record(), 1..9), step in 1_usize..200) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, lines.join("\r\n") + "\n").unwrap();
        let file = JsonLines::open(&path, "text").unwrap();
        let mut texts = Vec::new();
        let mut start = 0;
        while start < file.num_bytes() {
            let end = file.end_of_lines(start, step);
            texts.extend(file.texts(start..end, 2).unwrap().iter().map(str::to_owned));
            start = end;
        }
        let whole = file.texts(0..file.num_bytes(), 1).unwrap();
        prop_assert_eq!(texts, whole.iter().map(str::to_owned).collect::<Vec<_>>());
    }
}
