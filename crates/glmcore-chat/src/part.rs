//! What a rendered conversation is made of.

/// A special token or text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A special token, by name.
    Special(&'static str),
    /// Text in which no special token is recognised, whatever it looks like.
    Text(String),
}

/// A piece of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What stands there.
    pub piece: Piece,
    /// Whether the assistant wrote it, so a model learns it.
    pub learned: bool,
}

/// Parts as they are written; neighbouring texts are joined, so they are tokenised as the one text they are.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    parts: Vec<Part>,
    /// Whether what comes next is learned.
    pub(crate) learned: bool,
}

impl Parts {
    pub(crate) fn special(&mut self, token: &'static str) {
        self.parts.push(Part { piece: Piece::Special(token), learned: self.learned });
    }

    /// A special token for which `learned` does not count.
    pub(crate) fn special_as(&mut self, token: &'static str, learned: bool) {
        self.parts.push(Part { piece: Piece::Special(token), learned });
    }

    /// The text that a following text continues.
    fn open_text(&mut self) -> &mut String {
        let continues = matches!(self.parts.last(),
            Some(Part { piece: Piece::Text(_), learned }) if *learned == self.learned);
        if !continues {
            let piece = Piece::Text(String::new());
            self.parts.push(Part { piece, learned: self.learned });
        }
        match self.parts.last_mut() {
            Some(Part { piece: Piece::Text(text), .. }) => text,
            _ => unreachable!("a text has just been pushed"),
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.open_text().push_str(text);
        }
    }

    /// Lets `write` append text; it must append something.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut String)) {
        write(self.open_text());
    }

    /// Text of the format itself, in which these tokens are special.
    pub(crate) fn tagged(&mut self, mut text: &str, tokens: &[&'static str]) {
        let next =
            |text: &str| tokens.iter().filter_map(|&token| Some((text.find(token)?, token))).min();
        while let Some((at, token)) = next(text) {
            self.text(&text[..at]);
            self.special(token);
            text = &text[at + token.len()..];
        }
        self.text(text);
    }

    pub(crate) fn finish(self) -> Vec<Part> {
        self.parts
    }
}
