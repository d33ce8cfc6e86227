//! glmcore-tokenizer
