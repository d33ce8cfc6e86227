//! tokenizer.json in and out.

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::pretokenize::GLM4_PATTERN;
use crate::tokenizer::AddedToken;
use crate::{Error, TokenId, Tokenizer, byte_level};

/// The added tokens of GLM-4.5 and later, in the order of their ids.
pub const GLM4_SPECIAL_TOKENS: [&str; 36] = [
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|begin_of_transcription|>",
    "<|end_of_transcription|>",
    "<|code_prefix|>",
    "<|code_middle|>",
    "<|code_suffix|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
    "<|begin_of_box|>",
    "<|end_of_box|>",
    "<|image|>",
    "<|video|>",
];

/// So many of [`GLM4_SPECIAL_TOKENS`], from the first, are flagged special; the others survive decoding.
pub const NUM_SPECIAL_FLAGGED: usize = 18;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<FileToken>,
    #[serde(default)]
    normalizer: Value,
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the file's own flags")]
struct FileToken {
    id: TokenId,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: FxHashMap<String, TokenId>,
    merges: Vec<FileMerge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FileMerge {
    Pair(String, String),
    Joined(String),
}

impl Tokenizer {
    /// Reads the text of a tokenizer.json.
    ///
    /// # Errors
    ///
    /// [`Error::NotATokenizer`] for text of another shape, [`Error::Unsupported`] for a component that cannot be
    /// honoured exactly, [`Error::Inconsistent`] for vocabulary, merges and added tokens that do not fit together.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let file: File = serde_json::from_str(text)?;
        check_components(&file)?;
        check_model(&file.model)?;
        let mut vocab = FxHashMap::default();
        let mut unwritten = Vec::new();
        for (token, id) in file.model.vocab {
            match byte_level::to_bytes(&token) {
                Some(bytes) => {
                    vocab.insert(bytes, id);
                }
                None => unwritten.push(token),
            }
        }
        if let Some(token) = unwritten
            .into_iter()
            .find(|token| !file.added_tokens.iter().any(|a| a.content == *token))
        {
            return Err(Error::Inconsistent(format!(
                "token {token:?} is not in the byte-level alphabet"
            )));
        }
        let added = number_added_tokens(file.added_tokens, vocab.len())?;
        let pairs = file
            .model
            .merges
            .iter()
            .map(|merge| merge_ids(merge, &vocab))
            .collect::<Result<Vec<_>, _>>()?;
        Self::new(vocab, &pairs, added, file.model.ignore_merges)
    }

    /// The text of a tokenizer.json that Hugging Face `tokenizers` reads with the same ids.
    pub fn to_json(&self) -> String {
        let added: Vec<Value> = self.added.iter().map(added_token_json).collect();
        let mut learned: Vec<(&Vec<u8>, &TokenId)> = self.id_of.iter().collect();
        learned.sort_by_key(|&(_, id)| id);
        let vocab: Map<String, Value> = learned
            .into_iter()
            .map(|(bytes, id)| (byte_level::to_text(bytes), json!(id)))
            .collect();
        let mut pairs: Vec<_> = self.merges.by_pair.iter().collect();
        pairs.sort_by_key(|(_, merge)| merge.rank);
        let text_of = |id: TokenId| byte_level::to_text(&self.bytes_of[id as usize]);
        let merges: Vec<Value> = pairs
            .into_iter()
            .map(|(&(left, right), _)| json!([text_of(left), text_of(right)]))
            .collect();
        let byte_level = |add_prefix_space: bool, trim_offsets: bool, use_regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space,
                   "trim_offsets": trim_offsets, "use_regex": use_regex})
        };
        let split = json!({"type": "Split", "pattern": {"Regex": GLM4_PATTERN}, "behavior": "Isolated", "invert": false});
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level(false, true, false)]},
            "post_processor": byte_level(true, false, true),
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
                "vocab": vocab,
                "merges": merges,
            },
        });
        serde_json::to_string_pretty(&file).expect("plain values are valid JSON")
    }
}

fn added_token_json(token: &AddedToken) -> Value {
    json!({"id": token.id, "content": token.text, "single_word": false, "lstrip": false,
           "rstrip": false, "normalized": false, "special": token.special})
}

/// Refuses every component that would change ids in a way that this crate does not know.
fn check_components(file: &File) -> Result<(), Error> {
    let unsupported =
        |component, value: &Value| Err(Error::Unsupported { component, value: value.to_string() });
    for (component, value) in [
        ("truncation", &file.truncation),
        ("padding", &file.padding),
        ("normalizer", &file.normalizer),
    ] {
        if !value.is_null() {
            return unsupported(component, value);
        }
    }
    if !is_glm4_pre_tokenizer(&file.pre_tokenizer) {
        return unsupported("pre_tokenizer", &file.pre_tokenizer);
    }
    // As a post-processor ByteLevel only moves offsets.
    if !file.post_processor.is_null() && file.post_processor["type"] != "ByteLevel" {
        return unsupported("post_processor", &file.post_processor);
    }
    if file.decoder["type"] != "ByteLevel" {
        return unsupported("decoder", &file.decoder);
    }
    Ok(())
}

fn is_glm4_pre_tokenizer(value: &Value) -> bool {
    let parts = &value["pretokenizers"];
    let (split, bytes) = (&parts[0], &parts[1]);
    value["type"] == "Sequence"
        && parts.as_array().is_some_and(|parts| parts.len() == 2)
        && split["type"] == "Split"
        && split["pattern"]["Regex"] == GLM4_PATTERN
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false
}

fn check_model(model: &Model) -> Result<(), Error> {
    let unsupported = |component, value: String| Err(Error::Unsupported { component, value });
    if let Some(kind) = model.kind.as_deref().filter(|&kind| kind != "BPE") {
        return unsupported("model type", kind.to_owned());
    }
    if let Some(dropout) = model.dropout.filter(|&dropout| dropout > 0.0) {
        return unsupported("dropout", dropout.to_string());
    }
    if let Some(token) = &model.unk_token {
        return unsupported("unk_token", token.clone());
    }
    for (component, affix) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
            return unsupported(component, affix.clone());
        }
    }
    if model.byte_fallback {
        return unsupported("byte_fallback", "true".to_owned());
    }
    Ok(())
}

/// Added tokens with their ids. Hugging Face numbers them in file order, whatever their `id` says, so a file in which
/// the two differ is refused.
fn number_added_tokens(
    tokens: Vec<FileToken>,
    num_learned: usize,
) -> Result<Vec<AddedToken>, Error> {
    let mut added: Vec<AddedToken> = Vec::with_capacity(tokens.len());
    for token in tokens {
        if token.single_word || token.lstrip || token.rstrip {
            let value = format!("single_word, lstrip or rstrip of {:?}", token.content);
            return Err(Error::Unsupported { component: "added token", value });
        }
        let expected = num_learned + added.len();
        if token.id as usize != expected {
            return Err(Error::Inconsistent(format!(
                "added token {:?} has id {}, its place in the file gives {expected}",
                token.content, token.id
            )));
        }
        added.push(AddedToken { text: token.content, id: token.id, special: token.special });
    }
    Ok(added)
}

fn merge_ids(
    merge: &FileMerge,
    vocab: &FxHashMap<Vec<u8>, TokenId>,
) -> Result<(TokenId, TokenId), Error> {
    let (left, right) = match merge {
        FileMerge::Pair(left, right) => (left.as_str(), right.as_str()),
        FileMerge::Joined(both) => both
            .split_once(' ')
            .ok_or_else(|| Error::Inconsistent(format!("merge {both:?} is no pair")))?,
    };
    let id = |text: &str| {
        let known = byte_level::to_bytes(text).and_then(|bytes| vocab.get(&bytes).copied());
        known.ok_or_else(|| Error::Inconsistent(format!("merge of {text:?}, which is no token")))
    };
    Ok((id(left)?, id(right)?))
}
