//! tokenizer.json out.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::added::AddedToken;
use crate::split::GPT2_PATTERN;
use crate::tokenizer::Tokenizer;
use crate::{TokenId, byte_level};

const MERGES_PLACE: &str = "\"merges\": null";
const VOCAB_PLACE: &str = "\"vocab\": null";

impl Tokenizer {
    /// The text of a tokenizer.json that Hugging Face `tokenizers` reads with the same ids.
    pub fn to_json(&self) -> String {
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added.tokens().iter().map(added_token).collect::<Vec<_>>(),
            "normalizer": self.nfc.then(|| json!({"type": "NFC"})),
            "pre_tokenizer": self.pre_tokenizer(),
            "post_processor": self.post_processor(),
            "decoder": byte_level(true, true, true),
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.ignore_merges,
                "merges": null,
                "vocab": null,
            },
        });
        // Vocabulary and merges, by far the largest part, are written without building them first. Inside a string of
        // the file the quotes would be escaped, so the places are found for certain.
        let frame = serde_json::to_string_pretty(&file).expect("plain values are valid JSON");
        let (before, rest) = frame.split_once(MERGES_PLACE).expect("it has just been written");
        let (between, after) = rest.split_once(VOCAB_PLACE).expect("keys are written in order");
        let mut text = before.to_owned();
        text.push_str("\"merges\": [");
        self.write_merges(&mut text);
        text.push_str("\n    ]");
        text.push_str(between);
        text.push_str("\"vocab\": {");
        self.write_vocab(&mut text);
        text.push_str("\n    }");
        text.push_str(after);
        text
    }

    fn write_vocab(&self, text: &mut String) {
        let model_ids = (0..self.vocabulary.len() as TokenId).filter(|&id| self.is_in_model(id));
        for (place, id) in model_ids.enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(text, "{comma}\n      {}: {id}", self.written(id))
                .expect("a string takes everything");
        }
    }

    /// Whether a token stands in the model's vocabulary and not only among the added ones.
    fn is_in_model(&self, id: TokenId) -> bool {
        self.vocabulary.id(self.vocabulary.token(id)) == Some(id)
            || !self.added.tokens().iter().any(|token| token.id == id)
    }

    /// A token as a JSON string.
    fn written(&self, id: TokenId) -> Value {
        let bytes = self.vocabulary.token(id);
        let is_learned = self.vocabulary.id(bytes) == Some(id);
        match std::str::from_utf8(bytes) {
            Ok(raw) if !is_learned => raw.into(),
            _ => byte_level::to_text(bytes).into(),
        }
    }

    fn write_merges(&self, text: &mut String) {
        for (place, &(left, right, _)) in self.merges.pairs().iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(text, "{comma}\n      [{}, {}]", self.written(left), self.written(right))
                .expect("a string takes everything");
        }
    }

    fn pre_tokenizer(&self) -> Value {
        if self.add_prefix_space {
            return byte_level(true, true, !self.stages.is_empty());
        }
        if let [(pattern, true)] = &self.stages[..]
            && pattern == GPT2_PATTERN
        {
            return byte_level(false, true, true);
        }
        let splits = self.stages.iter().map(|(pattern, keep_gaps)| {
            let behavior = if *keep_gaps { "Isolated" } else { "Removed" };
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": !keep_gaps})
        });
        json!({"type": "Sequence",
               "pretokenizers": splits.chain([byte_level(false, true, false)]).collect::<Vec<_>>()})
    }

    fn post_processor(&self) -> Value {
        let offsets = byte_level(true, false, true);
        let (before, after) = (&self.template.before, &self.template.after);
        if before.is_empty() && after.is_empty() {
            return offsets;
        }
        let name = |id: TokenId| String::from_utf8_lossy(self.vocabulary.token(id)).into_owned();
        let special = |&id: &TokenId| json!({"SpecialToken": {"id": name(id), "type_id": 0}});
        let sequence =
            |which: &str, type_id: u32| json!({"Sequence": {"id": which, "type_id": type_id}});
        let around = |middle: Vec<Value>| -> Vec<Value> {
            before.iter().map(special).chain(middle).chain(after.iter().map(special)).collect()
        };
        let names = before
            .iter()
            .chain(after)
            .map(|&id| (name(id), json!({"id": name(id), "ids": [id], "tokens": [name(id)]})));
        json!({"type": "Sequence", "processors": [offsets, {
            "type": "TemplateProcessing",
            "single": around(vec![sequence("A", 0)]),
            "pair": around(vec![sequence("A", 0), sequence("B", 1)]),
            "special_tokens": names.collect::<serde_json::Map<_, _>>(),
        }]})
    }
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space,
           "trim_offsets": trim_offsets, "use_regex": use_regex})
}

fn added_token(token: &AddedToken) -> Value {
    json!({"id": token.id, "content": token.text, "single_word": token.single_word, "lstrip": token.lstrip,
           "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special})
}
