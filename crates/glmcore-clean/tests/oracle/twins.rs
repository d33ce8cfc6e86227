//! The plain twins.

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(crate) fn is_unspaced(c: char) -> bool {
    "漢字かな".contains(c)
}

pub(crate) fn is_separator(c: char) -> bool {
    c.is_whitespace() || "。，".contains(c)
}

/// Words of the statistics.
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in text.chars() {
        if is_unspaced(c) {
            words.extend([c.to_string(), String::new()]);
        } else if is_separator(c) {
            words.push(String::new());
        } else {
            words.last_mut().expect("never empty").push(c);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Tokens of duplicates and overlap.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let mut tokens = vec![String::new()];
    for c in text.chars() {
        if is_unspaced(c) {
            tokens.extend([c.to_string(), String::new()]);
        } else if c.is_alphanumeric() || c == '\u{301}' {
            tokens.last_mut().expect("never empty").extend(c.to_lowercase());
        } else {
            tokens.push(String::new());
        }
    }
    tokens.retain(|token| !token.is_empty());
    tokens
}

pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

pub(crate) fn chars(text: &str) -> usize {
    text.chars().count()
}

/// Shares of what was there before, by number and by characters.
pub(crate) fn repeated(parts: &[String]) -> [f64; 2] {
    let again: Vec<&String> = (1..parts.len())
        .filter(|&at| parts[..at].contains(&parts[at]))
        .map(|at| &parts[at])
        .collect();
    let size = |part: &str| chars(&part.replace('\n', ""));
    let all = parts.iter().map(|part| size(part)).sum();
    [ratio(again.len(), parts.len()), ratio(again.iter().map(|part| size(part)).sum(), all)]
}

pub(crate) fn top(words: &[String], length: usize) -> f64 {
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for run in words.windows(length) {
        *counts.entry(run).or_default() += 1;
    }
    let sized =
        counts.iter().map(|(run, &count)| (count, run.iter().map(|word| chars(word)).sum()));
    let best: Option<(usize, usize)> = sized.max().filter(|best| best.0 > 1);
    let all = words.iter().map(|word| chars(word)).sum();
    best.map_or(0.0, |(count, size)| ratio(count * size, all).min(1.0))
}

pub(crate) fn copied(words: &[String], length: usize) -> f64 {
    let runs: Vec<&[String]> = words.windows(length).collect();
    let mut covered = vec![false; words.len()];
    for at in 1..runs.len() {
        if runs[..at].contains(&runs[at]) {
            covered[at..at + length].fill(true);
        }
    }
    let all = words.iter().map(|word| chars(word)).sum();
    let inside = words.iter().zip(covered).filter(|(_, covered)| *covered);
    ratio(inside.map(|(word, _)| chars(word)).sum(), all)
}

pub(crate) fn plain_statistics(text: &str) -> Vec<f64> {
    let words = words(text);
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| line.trim().to_string())
        .filter(|line| !line.is_empty())
        .collect();
    let trimmed: Vec<&str> = text.split('\n').map(str::trim).collect();
    let paragraphs: Vec<String> = trimmed
        .split(|line| line.is_empty())
        .filter(|lines| !lines.is_empty())
        .map(|lines| lines.join("\n"))
        .collect();
    let ends = |word: &&String| {
        word.trim_end_matches(['"', '\'', ')', ']']).ends_with(['.', '!', '?', '\u{2026}'])
    };
    let sentences = words.iter().filter(ends).count() + text.matches('。').count();
    let lower: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
    let stop = ["the", "be", "to", "of", "and", "that", "have", "with"];
    let lorem = lower.windows(2).filter(|pair| pair[0] == "lorem" && pair[1] == "ipsum").count();
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    let word_chars: usize = words.iter().map(|word| chars(word)).sum();
    let dots = text.split(|c| c != '.').filter(|dots| dots.len() > 2).count();
    let share = |test: &dyn Fn(&String) -> bool| {
        ratio(lines.iter().filter(|line| test(line)).count(), lines.len())
    };
    let line_ends = ['"', '\'', '.', '!', '?', '\u{2026}', '。'];
    let mut values = vec![
        text.len() as f64,
        chars(text) as f64,
        words.len() as f64,
        lines.len() as f64,
        paragraphs.len() as f64,
        sentences as f64,
        stop.iter().filter(|&&stop| lower.iter().any(|word| word == stop)).count() as f64,
        (text.matches('{').count() + text.matches('}').count()) as f64,
        lorem as f64,
        ratio(word_chars, words.len()),
        words.iter().map(|word| chars(word)).max().unwrap_or(0) as f64,
        ratio(lines.iter().map(|line| chars(line)).sum(), lines.len()),
        ratio(text.matches('#').count(), words.len()),
        ratio(dots + text.matches('\u{2026}').count(), words.len()),
        ratio(text.matches('\n').count(), words.len()),
        ratio(
            words.iter().filter(|word| word.chars().any(char::is_alphabetic)).count(),
            words.len(),
        ),
        ratio(letters, word_chars),
        ratio(text.chars().filter(char::is_ascii_digit).count(), word_chars),
        ratio(text.chars().filter(|&c| is_unspaced(c)).count(), letters),
        share(&|line| line.starts_with(['-', '\u{2022}'])),
        share(&|line| line.ends_with("...") || line.ends_with('\u{2026}')),
        share(&|line| line.ends_with(line_ends)),
        share(&|line| chars(line) < 30),
    ];
    values.extend(repeated(&lines));
    values.extend(repeated(&paragraphs));
    values.extend((2..=4).map(|length| top(&words, length)));
    values.extend((5..=10).map(|length| copied(&words, length)));
    values
}

/// Different runs of tokens, of all if there are fewer.
pub(crate) fn shingle_set(text: &str, length: usize) -> BTreeSet<Vec<String>> {
    let tokens = tokens(text);
    if tokens.is_empty() {
        return BTreeSet::new();
    }
    tokens.windows(length.min(tokens.len())).map(<[String]>::to_vec).collect()
}

pub(crate) fn plain_jaccard(a: &str, b: &str, length: usize) -> f64 {
    let (a, b) = (shingle_set(a, length), shingle_set(b, length));
    ratio(a.intersection(&b).count(), a.union(&b).count())
}

/// Clusters by comparing every pair.
pub(crate) fn plain_clusters(count: usize, is_copy: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let mut cluster_of: Vec<usize> = (0..count).collect();
    for a in 0..count {
        for b in 0..a {
            if is_copy(a, b) {
                let (from, to) = (cluster_of[a], cluster_of[b]);
                cluster_of
                    .iter_mut()
                    .filter(|cluster| **cluster == from)
                    .for_each(|cluster| *cluster = to);
            }
        }
    }
    cluster_of
}

/// The best of each cluster: highest quality, then least id.
pub(crate) fn plain_kept(cluster_of: &[usize], quality: &[f64], ids: &[u64]) -> Vec<u32> {
    let better =
        |a: &usize, b: &usize| quality[*a].total_cmp(&quality[*b]).then(ids[*b].cmp(&ids[*a]));
    let mut best: BTreeMap<usize, usize> = BTreeMap::new();
    for (text, &cluster) in cluster_of.iter().enumerate() {
        let kept = best.entry(cluster).or_insert(text);
        *kept = *[*kept, text].iter().max_by(|a, b| better(a, b)).expect("two");
    }
    cluster_of.iter().map(|cluster| u32::try_from(best[cluster]).expect("small")).collect()
}

pub(crate) fn agreement(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b).count()
}

/// Texts of `length` random words out of `vocabulary`.
pub(crate) fn random_words(state: &mut u64, length: usize, vocabulary: u64) -> Vec<String> {
    let mut next = || {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % vocabulary
    };
    (0..length).map(|_| format!("w{}", next())).collect()
}
