//! Any bytes through a tokenizer: decoding gives them back, and neither batches nor cuts change an id.
#![no_main]

use std::sync::LazyLock;

use glmcore_tokenizer::{GLM4_PATTERN, GLM4_SPECIAL_TOKENS, Special, StreamDecoder, Tokenizer, Trainer};
use libfuzzer_sys::fuzz_target;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut trainer = Trainer::with_pattern(GLM4_PATTERN).expect("a known pattern");
    trainer.feed(&[include_str!("tokenizer_encode.rs"), "中文 中国 é 1234 <|user|>"], 1);
    let training = trainer.finish(400).expect("enough text");
    Tokenizer::from_training(&training, &GLM4_SPECIAL_TOKENS).expect("learned tokens fit")
});

fuzz_target!(|data: &[u8]| {
    let tokenizer = &*TOKENIZER;
    let ids = tokenizer.encode_bytes(data);
    assert_eq!(tokenizer.decode(&ids).expect("own ids"), data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let ids = tokenizer.encode(text, Special::AsText);
    assert_eq!(tokenizer.encode_batch(&[text, text], Special::AsText, 2).ids, [&ids[..], &ids[..]].concat());
    let (same, spans) = tokenizer.encode_with_spans(text, Special::AsText);
    assert_eq!(same, ids);
    assert_eq!(spans.last().map_or(0, |span| span.end), text.len());
    let mut decoder = StreamDecoder::new();
    let mut streamed = String::new();
    for id in tokenizer.encode(text, Special::Parse) {
        streamed += &decoder.push(tokenizer, id).expect("own ids");
    }
    assert_eq!(streamed + &decoder.finish(), text);
});
