use super::{Key, MAX_OUTSIDE, Outside, WordCache};
use crate::TokenId;
use crate::vocabulary::Vocabulary;

const TOKENS: [&[u8]; 2] = [b"a token", b"a token of more than fifteen bytes"];

fn vocabulary() -> Vocabulary {
    Vocabulary::new((0..).zip(TOKENS).map(|(id, token)| (id, token, true))).expect("they differ")
}

fn known(cache: &WordCache, word: &[u8]) -> Option<Vec<TokenId>> {
    let key = Key::of(word, 0, word.len());
    let entered = cache.find(key)?;
    if entered.count() > 0 {
        let mut few = [0; 4];
        entered.write(&mut few);
        return Some(few[..entered.count()].to_vec());
    }
    match cache.outside(key, entered, word, |_| false) {
        Outside::Ids(ids) => {
            let mut written = vec![0; ids.len().next_multiple_of(8)];
            ids.write(&mut written);
            assert_eq!(&written[..ids.len()], ids.as_slice());
            Some(ids.as_slice().to_vec())
        }
        Outside::Awaited(_) | Outside::OtherWord => None,
    }
}

fn learn(cache: &mut WordCache, word: &[u8], ids: &[TokenId]) {
    cache.insert(Key::of(word, 0, word.len()), word, ids);
}

#[test]
fn words_of_any_length_keep_their_ids_while_the_table_grows() {
    let vocabulary = vocabulary();
    let mut cache = WordCache::new(&vocabulary, true);
    let words: Vec<(Vec<u8>, Vec<TokenId>)> = (0..20_000_u32)
        .map(|number| {
            let mut word = format!("{number} ").into_bytes();
            word.resize(word.len().max(number as usize % 90), b'x');
            (word, (number..number + 1 + number % 40).collect())
        })
        .collect();
    for (word, ids) in &words {
        cache.make_room(&vocabulary, true);
        learn(&mut cache, word, ids);
    }
    for (word, ids) in &words {
        assert_eq!(known(&cache, word).as_ref(), Some(ids), "{word:?}");
        let longer = [word, b"x".as_slice()].concat();
        assert!(known(&cache, &longer).is_none_or(|found| found != *ids), "{word:?}");
    }
    assert_eq!(TOKENS.map(|token| known(&cache, token)), [Some(vec![0]), Some(vec![1])]);
}

#[test]
fn a_full_cache_forgets_all_but_the_tokens_and_stays_bounded() {
    let vocabulary = vocabulary();
    let mut cache = WordCache::new(&vocabulary, true);
    let word = |number: u32| {
        let mut word = format!("{number} ").into_bytes();
        word.resize(1000, b'y');
        word
    };
    let needed = MAX_OUTSIDE as u32 / 650 + 2;
    for number in 0..needed {
        cache.make_room(&vocabulary, true);
        assert!(cache.outside.len() <= MAX_OUTSIDE);
        learn(&mut cache, &word(number), &[number; 400]);
    }
    assert_eq!(known(&cache, &word(0)), None);
    assert_eq!(known(&cache, &word(needed - 1)), Some(vec![needed - 1; 400]));
    assert_eq!(TOKENS.map(|token| known(&cache, token)), [Some(vec![0]), Some(vec![1])]);
}
