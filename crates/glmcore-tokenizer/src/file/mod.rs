//! Tokenizers in files: tokenizer.json of Hugging Face, rank files of tiktoken, and a compiled form of our own.

mod compiled;
mod json;
mod tiktoken;
mod write;

use std::path::Path;

use crate::Error;

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

/// No tokenizer's file is larger.
const MAX_FILE_BYTES: u64 = 1 << 29;

/// Text of a file of bounded size.
fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE_BYTES {
        return Err(Error::FileTooLarge { path: path.to_owned(), size, limit: MAX_FILE_BYTES });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
        path: path.to_owned(),
        at: error.utf8_error().valid_up_to(),
    })
}
