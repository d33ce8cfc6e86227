//! Any bytes as a tokenizer file: an error or a tokenizer whose ids stand for the text, never a panic.
#![no_main]

use glmcore_tokenizer::{GLM4_PATTERN, Special, Tokenizer};
use libfuzzer_sys::fuzz_target;

const TEXT: &str = "the cat's 1234 \u{4e2d}\u{6587} \n\n <|user|>";

fuzz_target!(|data: &[u8]| {
    let Some((&kind, content)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(content);
    let read = match kind % 3 {
        0 => Tokenizer::from_json(&text),
        1 => Tokenizer::from_tiktoken(&text, GLM4_PATTERN, &["<|user|>"]),
        _ => Tokenizer::from_compiled(content),
    };
    if let Ok(tokenizer) = read {
        let ids = tokenizer.encode(TEXT, Special::Parse);
        assert!(tokenizer.decode(&ids).is_ok(), "an id is outside the vocabulary");
        let again = Tokenizer::from_compiled(&tokenizer.to_compiled()).expect("what was written is read");
        assert_eq!(again.encode(TEXT, Special::Parse), ids);
    }
});
