//! The tokenizer: vocabulary, merges, the splitting of text and the added tokens together.

use std::sync::{Mutex, OnceLock};

use crate::added::{AddedToken, AddedTokens};
use crate::characters::Characters;
use crate::decode::Slots;
use crate::merges::{MAX_MERGES, Merges};
use crate::normalize::nfc;
use crate::split::{General, Known, Splitter, Stage};
use crate::train::Training;
use crate::vocabulary::Vocabulary;
use crate::words::Workspace;
use crate::{Error, NUM_SPECIAL_FLAGGED};

/// Number of a token in the vocabulary.
pub type TokenId = u32;

/// What becomes of added tokens that stand in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// They stay text, so no input can forge one.
    AsText,
    /// They become their ids, as Hugging Face does by default.
    Parse,
}

/// Everything that a tokenizer is made of.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a property of its own")]
pub(crate) struct Definition {
    pub(crate) vocabulary: Vocabulary,
    /// Left, right and merged token of each merge, in order.
    pub(crate) merges: Vec<(TokenId, TokenId, TokenId)>,
    /// Merges rank by the token that they make, as in tiktoken, not by their place.
    pub(crate) rank_by_id: bool,
    pub(crate) added: Vec<AddedToken>,
    pub(crate) stages: Vec<Stage>,
    /// A text that does not begin with a space gets one.
    pub(crate) add_prefix_space: bool,
    pub(crate) nfc: bool,
    /// A word that is a token as a whole becomes it, whatever the merges say.
    pub(crate) ignore_merges: bool,
    pub(crate) template: Template,
}

/// Tokens that a post-processor puts around a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Ids before the text.
    pub before: Vec<TokenId>,
    /// Ids after it.
    pub after: Vec<TokenId>,
}

/// A byte-level BPE tokenizer.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a property of its own")]
pub struct Tokenizer {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) merges: Merges,
    pub(crate) rank_by_id: bool,
    pub(crate) characters: Characters,
    pub(crate) splitter: Splitter,
    pub(crate) stages: Vec<(String, bool)>,
    pub(crate) added: AddedTokens,
    pub(crate) add_prefix_space: bool,
    pub(crate) nfc: bool,
    pub(crate) ignore_merges: bool,
    pub(crate) template: Template,
    /// Bit i: token i is flagged special.
    special: Box<[u64]>,
    /// What decoding reads, made when it is first asked for.
    pub(crate) slots: OnceLock<Slots>,
    /// Workspaces that no call is using.
    workspaces: Mutex<Vec<Workspace>>,
}

impl Tokenizer {
    /// Puts a tokenizer together and checks that its parts fit.
    ///
    /// # Errors
    ///
    /// [`Error::Inconsistent`] if a byte has no token or there are too many merges.
    pub(crate) fn new(definition: Definition) -> Result<Self, Error> {
        let Definition {
            vocabulary,
            merges,
            rank_by_id,
            added,
            stages,
            add_prefix_space,
            nfc,
            ignore_merges,
            template,
        } = definition;
        if merges.len() >= MAX_MERGES {
            return Err(Error::Inconsistent(format!(
                "{} merges are more than {MAX_MERGES}",
                merges.len()
            )));
        }
        let mut byte_ids = [0; 256];
        for (byte, (id, known)) in byte_ids.iter_mut().zip(vocabulary.byte_ids()).enumerate() {
            *id = known
                .ok_or_else(|| Error::Inconsistent(format!("byte {byte:#04x} has no token")))?;
        }
        let rank_of = |place: usize, id: TokenId| if rank_by_id { id } else { place as u32 };
        let merges = Merges::new(&byte_ids, merges, vocabulary.len(), rank_of);
        let characters = Characters::new(&vocabulary, &merges, rank_of);
        let mut special = vec![0_u64; vocabulary.len().div_ceil(64)];
        for token in added.iter().filter(|token| token.special) {
            special[token.id as usize / 64] |= 1 << (token.id % 64);
        }
        let added = AddedTokens::new(added, |text| {
            if nfc { crate::normalize::nfc(text).into_owned() } else { text.to_owned() }
        })?;
        let kept: Vec<(String, bool)> =
            stages.iter().map(|stage| (stage.pattern().to_owned(), stage.keeps_gaps())).collect();
        Ok(Self {
            vocabulary,
            merges,
            rank_by_id,
            characters,
            splitter: splitter(stages),
            stages: kept,
            added,
            add_prefix_space,
            nfc,
            ignore_merges,
            template,
            special: special.into(),
            slots: OnceLock::new(),
            workspaces: Mutex::default(),
        })
    }

    /// A tokenizer from learned merges, with the pattern that they were learned with. Special tokens take the ids after
    /// the learned ones; the first 18 are flagged special, as GLM-4 flags its own.
    ///
    /// # Errors
    ///
    /// [`Error::Inconsistent`] if two tokens are equal.
    pub fn from_training(training: &Training, special_tokens: &[&str]) -> Result<Self, Error> {
        let learned = training.tokens.len();
        let mut added: Vec<AddedToken> = Vec::new();
        for text in special_tokens {
            if added.iter().any(|token| token.text == *text) {
                return Err(Error::Inconsistent(format!("special token {text:?} is given twice")));
            }
            let id = (learned + added.len()) as TokenId;
            added.push(AddedToken::new(*text, id, added.len() < NUM_SPECIAL_FLAGGED));
        }
        let learned = (0..).zip(&training.tokens).map(|(id, bytes)| (id, bytes.as_slice(), true));
        let outside = added.iter().map(|token| (token.id, token.text.as_bytes(), false));
        let vocabulary = Vocabulary::new(learned.chain(outside))?;
        let mut merges = Vec::with_capacity(training.merges.len());
        for &(left, right) in &training.merges {
            let bytes = [vocabulary.token(left), vocabulary.token(right)].concat();
            let id = vocabulary.id(&bytes).ok_or_else(|| {
                Error::Inconsistent("a merge makes no token of the vocabulary".to_owned())
            })?;
            merges.push((left, right, id));
        }
        Self::new(Definition {
            vocabulary,
            merges,
            rank_by_id: false,
            added,
            stages: vec![Stage::new(&training.pattern, true)?],
            add_prefix_space: false,
            nfc: false,
            ignore_merges: true,
            template: Template::default(),
        })
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Tokens outside the learned vocabulary, in the order in which they were given.
    pub fn added_tokens(&self) -> &[AddedToken] {
        self.added.tokens()
    }

    /// What the post-processor of the file puts around a text; [`Tokenizer::encode`] leaves it to the caller.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Patterns that split text, in order.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().map(|(pattern, _)| pattern.as_str())
    }

    /// Bytes of a token, or `None` outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.vocabulary.get(id)
    }

    /// Id of the token with exactly these bytes; an added token by its text.
    pub fn token_id(&self, bytes: &[u8]) -> Option<TokenId> {
        let added = self.added.tokens().iter().find(|token| token.text.as_bytes() == bytes);
        added.map(|token| token.id).or_else(|| self.vocabulary.id(bytes))
    }

    /// Whether `id` is an added token that decoding may skip.
    #[inline]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id as usize / 64).is_some_and(|bits| bits >> (id % 64) & 1 != 0)
    }

    /// The text as it is split and merged, with normalisation where the tokenizer asks for it.
    pub fn normalized<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if self.nfc { nfc(text) } else { text.into() }
    }

    /// Calls `task` with a workspace, which is kept for later calls.
    pub(crate) fn with_workspace<R>(&self, task: impl FnOnce(&mut Workspace) -> R) -> R {
        // A fork may have left the lock held for ever: then this call goes without the pool.
        let pooled = self.workspaces.try_lock().ok().and_then(|mut pool| pool.pop());
        let mut work =
            pooled.unwrap_or_else(|| Workspace::new(&self.vocabulary, self.ignore_merges));
        let result = task(&mut work);
        if let Ok(mut pool) = self.workspaces.try_lock() {
            pool.push(work);
        }
        result
    }

    /// Whether a text may be cut between a line break and an ASCII letter or digit.
    pub(crate) fn can_be_cut(&self) -> bool {
        matches!(self.splitter, Splitter::Known(_))
            && !self.add_prefix_space
            && self.added.stay_in_lines()
    }
}

pub(crate) fn splitter(stages: Vec<Stage>) -> Splitter {
    let patterns: Vec<&str> = stages.iter().map(Stage::pattern).collect();
    match Known::of_patterns(&patterns) {
        // A known pattern leaves nothing out, so there are no gaps to keep or drop.
        Some(known) => Splitter::Known(known),
        None => Splitter::General(General { stages }),
    }
}

/// Splits `text` into the words that are merged on their own, by patterns one after the other; what a pattern leaves out
/// becomes words too.
///
/// # Errors
///
/// [`Error::Unsupported`] if the engine cannot read a pattern.
///
/// ```
/// use glmcore_tokenizer::{GLM4_PATTERN, split};
///
/// let words = split(&[GLM4_PATTERN], "It's 2024,  ok\n")?;
/// assert_eq!(words, ["It", "'s", " ", "202", "4", ",", " ", " ok", "\n"]);
/// # Ok::<(), glmcore_tokenizer::Error>(())
/// ```
pub fn split<'t>(patterns: &[&str], text: &'t str) -> Result<Vec<&'t str>, Error> {
    let stages =
        patterns.iter().map(|pattern| Stage::new(pattern, true)).collect::<Result<_, _>>()?;
    let mut words = Vec::new();
    splitter(stages).for_each_word(text, |start, end| words.push(&text[start..end]));
    Ok(words)
}
