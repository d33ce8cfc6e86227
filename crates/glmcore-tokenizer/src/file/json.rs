//! tokenizer.json in.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::read;
use crate::added::AddedToken;
use crate::split::{GPT2_PATTERN, Stage};
use crate::tokenizer::{Definition, Template, Tokenizer};
use crate::vocabulary::Vocabulary;
use crate::{Error, TokenId, byte_level};

#[derive(Deserialize)]
struct File<'f> {
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<FileToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: Model<'f>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the file's own flags")]
struct FileToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model<'f> {
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
    #[serde(borrow)]
    vocab: FileVocab<'f>,
    merges: FileMerges,
}

/// Tokens as the file writes them.
struct FileVocab<'f>(Vec<(Cow<'f, str>, TokenId)>);

impl<'de: 'f, 'f> Deserialize<'de> for FileVocab<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = FileVocab<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from tokens to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut tokens = Vec::new();
                while let Some(Text(token)) = map.next_key()? {
                    tokens.push((token, map.next_value()?));
                }
                Ok(FileVocab(tokens))
            }
        }
        deserializer.deserialize_map(Tokens)
    }
}

/// A string that is borrowed where it holds no escapes.
#[derive(Deserialize)]
struct Text<'f>(#[serde(borrow)] Cow<'f, str>);

/// The two tokens of each merge, in bytes, one after the other.
#[derive(Default)]
struct FileMerges {
    bytes: Vec<u8>,
    /// Middle and end of each merge.
    bounds: Vec<(usize, usize)>,
}

impl FileMerges {
    fn push(&mut self, left: &str, right: &str) -> Result<(), String> {
        let place = self.bounds.len();
        let mut add = |text: &str| {
            byte_level::push_bytes(text, &mut self.bytes)
                .then_some(self.bytes.len())
                .ok_or_else(|| format!("merge {place}: {text:?} is not in the byte-level alphabet"))
        };
        let bounds = (add(left)?, add(right)?);
        self.bounds.push(bounds);
        Ok(())
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.bounds.iter().map(move |&(middle, end)| {
            let pair = (&self.bytes[start..middle], &self.bytes[middle..end]);
            start = end;
            pair
        })
    }
}

/// A merge as the file writes it: a pair, or both with a space between.
struct FileMerge<'f>(Cow<'f, str>, Option<Cow<'f, str>>);

impl<'de> Deserialize<'de> for FileMerge<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Merge;
        impl<'de> Visitor<'de> for Merge {
            type Value = FileMerge<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a merge: two tokens")
            }
            fn visit_borrowed_str<E: serde::de::Error>(
                self,
                both: &'de str,
            ) -> Result<Self::Value, E> {
                Ok(FileMerge(Cow::Borrowed(both), None))
            }
            fn visit_str<E: serde::de::Error>(self, both: &str) -> Result<Self::Value, E> {
                Ok(FileMerge(Cow::Owned(both.to_owned()), None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
                let mut next = || {
                    pair.next_element::<Text<'de>>()?
                        .map(|text| text.0)
                        .ok_or_else(|| A::Error::custom("a merge needs two tokens"))
                };
                let merge = FileMerge(next()?, Some(next()?));
                if pair.next_element::<Text<'de>>()?.is_some() {
                    return Err(A::Error::custom("a merge has only two tokens"));
                }
                Ok(merge)
            }
        }
        deserializer.deserialize_any(Merge)
    }
}

impl<'de> Deserialize<'de> for FileMerges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Merges;
        impl<'de> Visitor<'de> for Merges {
            type Value = FileMerges;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut merges = FileMerges::default();
                while let Some(FileMerge(left, right)) = list.next_element()? {
                    let place = merges.bounds.len();
                    let pushed = match &right {
                        Some(right) => merges.push(&left, right),
                        None => match left.split_once(' ') {
                            Some((left, right)) => merges.push(left, right),
                            None => Err(format!("merge {place}: {left:?} is no pair")),
                        },
                    };
                    pushed.map_err(A::Error::custom)?;
                }
                Ok(merges)
            }
        }
        deserializer.deserialize_seq(Merges)
    }
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::FileTooLarge`] and [`Error::NotUtf8`] for a file that cannot be read, and those of
    /// [`Tokenizer::from_json`].
    pub fn from_json_file(path: &Path) -> Result<Self, Error> {
        Self::from_json(&read(path)?)
    }

    /// Reads the text of a tokenizer.json.
    ///
    /// # Errors
    ///
    /// [`Error::NotATokenizer`] for text of another shape, [`Error::Unsupported`] for a component that cannot be
    /// honoured exactly, [`Error::Inconsistent`] for vocabulary, merges and added tokens that do not fit together.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let file: File<'_> = serde_json::from_str(text)?;
        for (component, value) in [("truncation", &file.truncation), ("padding", &file.padding)] {
            if !value.is_null() {
                return unsupported(component, value.to_string());
            }
        }
        check_model(&file.model)?;
        check_decoder(&file.decoder)?;
        let nfc = read_normalizer(&file.normalizer)?;
        let (stages, add_prefix_space) = read_pre_tokenizer(&file.pre_tokenizer)?;
        let mut template = Template::default();
        read_post_processor(&file.post_processor, &mut template)?;

        let mut bytes = Vec::new();
        let mut bounds = Vec::with_capacity(file.model.vocab.0.len());
        for (token, id) in &file.model.vocab.0 {
            let start = bytes.len();
            // A token that leaves the alphabet can never be merged; it stands for its own text.
            let learned = byte_level::push_bytes(token, &mut bytes);
            if !learned {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
            }
            bounds.push((*id, start..bytes.len(), learned));
        }
        let num_learned = bounds.len();
        let added = number_added_tokens(file.added_tokens, &file.model.vocab.0, num_learned);
        let outside = added
            .iter()
            .filter(|token| token.id as usize >= num_learned)
            .map(|token| (token.id, token.text.as_bytes(), false));
        let learned =
            bounds.iter().map(|(id, range, learned)| (*id, &bytes[range.clone()], *learned));
        let vocabulary = Vocabulary::new(learned.chain(outside))?;
        let merges = resolve_merges(&file.model.merges, &vocabulary)?;
        let ids = template.before.iter().chain(&template.after);
        if let Some(id) = ids.copied().find(|&id| id as usize >= vocabulary.len()) {
            return Err(Error::Inconsistent(format!(
                "the post-processor adds id {id}, which is no token"
            )));
        }
        Self::new(Definition {
            vocabulary,
            merges,
            rank_by_id: false,
            added,
            stages,
            add_prefix_space,
            nfc,
            ignore_merges: file.model.ignore_merges,
            template,
        })
    }
}

fn unsupported<T>(component: &'static str, value: String) -> Result<T, Error> {
    Err(Error::Unsupported { component, value })
}

fn check_model(model: &Model<'_>) -> Result<(), Error> {
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

fn check_decoder(decoder: &Value) -> Result<(), Error> {
    let is_byte_level = decoder["type"] == "ByteLevel"
        || decoder["type"] == "Sequence"
            && decoder["decoders"]
                .as_array()
                .is_some_and(|list| list.len() == 1 && list[0]["type"] == "ByteLevel");
    if is_byte_level { Ok(()) } else { unsupported("decoder", decoder.to_string()) }
}

/// Whether text is brought into normal form C.
fn read_normalizer(value: &Value) -> Result<bool, Error> {
    match value["type"].as_str() {
        None if value.is_null() => Ok(false),
        Some("NFC") => Ok(true),
        Some("Sequence") => {
            let list = value["normalizers"].as_array().map_or(&[][..], Vec::as_slice);
            list.iter().try_fold(false, |nfc, part| Ok(read_normalizer(part)? || nfc))
        }
        _ => unsupported("normalizer", value.to_string()),
    }
}

/// The stages of splitting, and whether a space is put before.
fn read_pre_tokenizer(value: &Value) -> Result<(Vec<Stage>, bool), Error> {
    let parts = match value["type"].as_str() {
        Some("Sequence") => value["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice),
        _ => std::slice::from_ref(value),
    };
    let mut stages = Vec::new();
    let mut add_prefix_space = false;
    let mut is_byte_level = false;
    for part in parts {
        if is_byte_level {
            return unsupported("pre_tokenizer after ByteLevel", part.to_string());
        }
        match part["type"].as_str() {
            Some("Split") => stages.push(read_split(part)?),
            Some("Digits") => {
                let each = part["individual_digits"] == true;
                stages.push(Stage::new(if each { r"\p{N}" } else { r"\p{N}+" }, true)?);
            }
            Some("ByteLevel") => {
                is_byte_level = true;
                add_prefix_space = part["add_prefix_space"] != false;
                if add_prefix_space && !stages.is_empty() {
                    return unsupported("add_prefix_space after a split", part.to_string());
                }
                if part["use_regex"] != false {
                    stages.push(Stage::new(GPT2_PATTERN, true)?);
                }
            }
            _ => return unsupported("pre_tokenizer", part.to_string()),
        }
    }
    if !is_byte_level {
        return unsupported("pre_tokenizer without ByteLevel", value.to_string());
    }
    Ok((stages, add_prefix_space))
}

fn read_split(part: &Value) -> Result<Stage, Error> {
    let pattern = &part["pattern"];
    let pattern = match (pattern["Regex"].as_str(), pattern["String"].as_str()) {
        (Some(regex), _) => regex.to_owned(),
        (None, Some(text)) => fancy_regex::escape(text).into_owned(),
        _ => return unsupported("split pattern", pattern.to_string()),
    };
    match (part["behavior"].as_str(), part["invert"] == true) {
        (Some("Isolated"), _) => Stage::new(&pattern, true),
        (Some("Removed"), true) => Stage::new(&pattern, false),
        _ => unsupported("split behavior", part.to_string()),
    }
}

fn read_post_processor(value: &Value, template: &mut Template) -> Result<(), Error> {
    match value["type"].as_str() {
        None if value.is_null() => Ok(()),
        Some("ByteLevel") => Ok(()), // only moves offsets
        Some("Sequence") => {
            let list = value["processors"].as_array().map_or(&[][..], Vec::as_slice);
            list.iter().try_for_each(|part| read_post_processor(part, template))
        }
        Some("TemplateProcessing") => read_template(value, template),
        _ => unsupported("post_processor", value.to_string()),
    }
}

fn read_template(value: &Value, template: &mut Template) -> Result<(), Error> {
    let bad = || unsupported("post_processor", value.to_string());
    let mut seen_text = false;
    for piece in value["single"].as_array().map_or(&[][..], Vec::as_slice) {
        if piece["Sequence"].is_object() && !seen_text {
            seen_text = true;
            continue;
        }
        let Some(name) = piece["SpecialToken"]["id"].as_str() else { return bad() };
        let Some(ids) = value["special_tokens"][name]["ids"].as_array() else { return bad() };
        for id in ids {
            let Some(id) = id.as_u64().and_then(|id| TokenId::try_from(id).ok()) else {
                return bad();
            };
            if seen_text { template.after.push(id) } else { template.before.push(id) }
        }
    }
    if seen_text { Ok(()) } else { bad() }
}

/// Added tokens with their ids: that of the vocabulary where it has them, else the next one in the order of the file,
/// whatever its `id` says. So does Hugging Face.
fn number_added_tokens(
    tokens: Vec<FileToken>,
    vocab: &[(Cow<'_, str>, TokenId)],
    num_learned: usize,
) -> Vec<AddedToken> {
    let mut wanted: HashMap<&str, Option<TokenId>> =
        tokens.iter().map(|token| (token.content.as_str(), None)).collect();
    for (token, id) in vocab {
        if let Some(place) = wanted.get_mut(token.as_ref()) {
            *place = Some(*id);
        }
    }
    let known: Vec<Option<TokenId>> =
        tokens.iter().map(|token| wanted[token.content.as_str()]).collect();
    let mut added: Vec<AddedToken> = Vec::with_capacity(tokens.len());
    let mut next = num_learned as TokenId;
    let mut seen = std::collections::HashSet::new();
    for (token, known) in tokens.into_iter().zip(known) {
        if token.content.is_empty() || !seen.insert(token.content.clone()) {
            continue;
        }
        let id = known.unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        added.push(AddedToken {
            text: token.content,
            id,
            special: token.special,
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: token.normalized.unwrap_or(!token.special),
        });
    }
    added
}

fn resolve_merges(
    merges: &FileMerges,
    vocabulary: &Vocabulary,
) -> Result<Vec<(TokenId, TokenId, TokenId)>, Error> {
    let mut resolved = Vec::with_capacity(merges.bounds.len());
    let mut halves = vocabulary.ids(merges.iter().flat_map(|(left, right)| [left, right]));
    let mut start = 0;
    let mut last = 0;
    for ((left, right), &(_, end)) in merges.iter().zip(&merges.bounds) {
        let unknown = |bytes: &[u8]| {
            let place = resolved.len();
            let text = byte_level::to_text(bytes);
            Error::Inconsistent(format!("merge {place}: {text:?} is no token of the vocabulary"))
        };
        let mut half = |bytes| halves.next().flatten().ok_or_else(|| unknown(bytes));
        let (left, right) = (half(left)?, half(right)?);
        // Merges mostly make one token after the other.
        let both = &merges.bytes[start..end];
        let next = [last, last + 1].into_iter().find(|&id| vocabulary.is(id, both));
        last = next.or_else(|| vocabulary.id(both)).ok_or_else(|| unknown(both))?;
        resolved.push((left, right, last));
        start = end;
    }
    Ok(resolved)
}
