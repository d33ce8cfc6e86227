//! The fast paths against plain twins.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use glmcore_tokenizer::{
    GLM4_SPECIAL_TOKENS, Special, StreamDecoder, Tokenizer, Trainer, encode_batch, pretokens,
};
use proptest::prelude::*;

const TEXT: &str = "the cat sat on the mat; the catalogue of cats sat there, then 1234 cats ate 12 mats\n\n  aaaa aaaaaaa";

fn tokenizer() -> Tokenizer {
    let mut trainer = Trainer::new();
    trainer.feed(&[TEXT], 1);
    let training = trainer.finish(290).unwrap();
    Tokenizer::from_training(&training, &GLM4_SPECIAL_TOKENS).unwrap()
}

/// Merges the lowest-ranked pair, leftmost first, until none is left; ranks from the saved merges.
fn plain_bpe(merges: &[(Vec<u8>, Vec<u8>)], piece: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
    loop {
        let best = merges.iter().find_map(|(left, right)| {
            parts.windows(2).position(|pair| pair[0] == *left && pair[1] == *right)
        });
        let Some(at) = best else { return parts };
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
}

fn merges_of(text: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut trainer = Trainer::new();
    trainer.feed(&[text], 1);
    let training = trainer.finish(290).unwrap();
    let bytes = |id: u32| training.tokens[id as usize].clone();
    training.merges.iter().map(|&(left, right)| (bytes(left), bytes(right))).collect()
}

proptest! {
    #[test]
    fn encoding_equals_the_plain_merge_loop(text in "[a-e ]{0,20}|[ats]{60,200}|\\PC{0,40}") {
        let (tokenizer, merges) = (tokenizer(), merges_of(TEXT));
        let expected: Vec<Vec<u8>> =
            pretokens(&text).flat_map(|word| plain_bpe(&merges, word.as_bytes())).collect();
        let got: Vec<Vec<u8>> = tokenizer
            .encode(&text, Special::AsText)
            .into_iter()
            .map(|id| tokenizer.token_bytes(id).unwrap().to_vec())
            .collect();
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn decoding_gives_the_text_back(text in "\\PC{0,60}") {
        let tokenizer = tokenizer();
        for special in [Special::AsText, Special::Parse] {
            let ids = tokenizer.encode(&text, special);
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn pretokens_cover_the_text(text in any::<String>()) {
        prop_assert_eq!(pretokens(&text).collect::<String>(), text.clone());
        prop_assert!(pretokens(&text).all(|token| !token.is_empty()));
    }

    #[test]
    fn a_batch_is_its_texts_one_by_one(texts in prop::collection::vec("\\PC{0,30}", 0..20), threads in 1_usize..4) {
        let tokenizer = tokenizer();
        let batch = encode_batch(&tokenizer, &texts, Special::AsText, threads);
        prop_assert_eq!(batch.offsets.len(), texts.len() + 1);
        for (index, text) in texts.iter().enumerate() {
            let ids = &batch.ids[batch.offsets[index]..batch.offsets[index + 1]];
            prop_assert_eq!(ids, tokenizer.encode(text, Special::AsText));
        }
    }

    #[test]
    fn a_stream_gives_what_decoding_at_once_gives(ids in prop::collection::vec(0_u32..326, 0..40)) {
        let tokenizer = tokenizer();
        let mut stream = StreamDecoder::new();
        let mut text = String::new();
        for &id in &ids {
            text += &stream.push(&tokenizer, id).unwrap();
        }
        text += &stream.finish();
        let bytes = tokenizer.decode(&ids).unwrap();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn arbitrary_files_are_refused_without_panic(text in any::<String>()) {
        prop_assert!(Tokenizer::from_json(&text).is_err());
    }
}

#[test]
fn a_file_comes_back_with_the_same_ids() {
    let tokenizer = tokenizer();
    let again = Tokenizer::from_json(&tokenizer.to_json()).unwrap();
    assert_eq!(again.to_json(), tokenizer.to_json());
    assert_eq!(again.encode(TEXT, Special::Parse), tokenizer.encode(TEXT, Special::Parse));
}

#[test]
fn special_tokens_are_parsed_only_when_asked_for() {
    let tokenizer = tokenizer();
    let user = tokenizer.token_id(b"<|user|>").unwrap();
    assert_eq!(tokenizer.encode("<|user|>", Special::Parse), [user]);
    assert!(!tokenizer.encode("<|user|>", Special::AsText).contains(&user));
    assert_eq!(tokenizer.decode_without_special(&[user]).unwrap(), b"");
    let think = tokenizer.token_id(b"<think>").unwrap();
    assert_eq!(tokenizer.decode_without_special(&[think]).unwrap(), b"<think>");
}

#[test]
fn too_little_text_is_an_error_with_the_numbers() {
    let mut trainer = Trainer::new();
    trainer.feed(&["ab ab"], 1);
    let error = trainer.finish(300).unwrap_err().to_string();
    assert_eq!(
        error,
        "the text allows 2 merges, 44 are needed: give more text or a smaller vocabulary"
    );
}

#[test]
fn components_that_cannot_be_honoured_are_named() {
    let json = tokenizer().to_json();
    let with = |from: &str, to: &str| {
        Tokenizer::from_json(&json.replacen(from, to, 1)).unwrap_err().to_string()
    };
    assert!(
        with("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}")
            .starts_with("normalizer is not")
    );
    assert!(with("{1,3}", "{1,2}").starts_with("pre_tokenizer is not supported"));
    assert!(with("\"unk_token\": null", "\"unk_token\": \"x\"").starts_with("unk_token is not"));
    assert!(with("\"lstrip\": false", "\"lstrip\": true").starts_with("added token is not"));
}
