//! Near duplicates by locality-sensitive hashing of `MinHash` signatures.
//!
//! A signature is cut into bands of rows; texts that agree in a whole band are candidates (Leskovec, Rajaraman, Ullman,
//! Mining of Massive Datasets, section 3.4). A pair of similarity s is a candidate with probability
//! `1 - (1 - s^rows)^bands`. Candidates whose signatures agree in the threshold's share of entries, or whose texts do if
//! they are given, are linked, and linked texts are one cluster.

use crate::minhash::{shingles, similarity};
use crate::threads::{map, threads};
use crate::{Error, setting};

/// Least probability that a pair just at the threshold is a candidate.
const MIN_RECALL: f64 = 0.98;
/// Texts that agree in a band, up to which every pair is compared.
const ALL_PAIRS: usize = 64;
/// In larger groups, texts that the others are compared with: each is unlike those before it.
const MAX_LEADERS: usize = 64;
/// With texts given, pairs are compared exactly if their signatures estimate this many standard deviations less than
/// the threshold or more.
const DEVIATIONS: f64 = 3.0;

/// How copies are found and which of them is kept.
pub struct Copies<'a> {
    num_permutations: usize,
    threshold: f64,
    bands: usize,
    rows: usize,
    /// Larger is kept.
    quality: Option<&'a [f64]>,
    /// Among equals the least is kept.
    ids: Option<&'a [u64]>,
    /// Texts to compare exactly, and the tokens of a shingle.
    texts: Option<(&'a [&'a str], usize)>,
}

impl<'a> Copies<'a> {
    /// Texts are copies if they share `threshold` of their shingles. Bands have as many rows as let a pair at the
    /// threshold be compared with a probability of 98 %.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] unless the threshold is above 0 and at most 1 and there are permutations.
    pub fn new(num_permutations: usize, threshold: f64) -> Result<Self, Error> {
        if num_permutations == 0 {
            return Err(setting("num_permutations", 0, "at least 1"));
        }
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(setting("threshold", threshold, "above 0 and at most 1"));
        }
        let recall = |rows: &usize| candidate(threshold, num_permutations / rows, *rows);
        let rows =
            (1..=num_permutations).rev().find(|rows| recall(rows) >= MIN_RECALL).unwrap_or(1);
        let bands = num_permutations / rows;
        let (quality, ids, texts) = (None, None, None);
        Ok(Self { num_permutations, threshold, bands, rows, quality, ids, texts })
    }

    /// Bands of the given shape in place of the chosen one.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if they are none or need more entries than a signature has.
    pub fn with_bands(mut self, bands: usize, rows: usize) -> Result<Self, Error> {
        if bands == 0
            || rows == 0
            || bands.checked_mul(rows).is_none_or(|all| all > self.num_permutations)
        {
            let value = format!("{bands} of {rows} rows");
            return Err(setting("bands", value, "at least 1 of 1 row, and fit the signature"));
        }
        (self.bands, self.rows) = (bands, rows);
        Ok(self)
    }

    /// Of each cluster keeps the text of the highest quality, the first (by id) among equals.
    #[must_use]
    pub fn with_quality(self, quality: &'a [f64]) -> Self {
        Self { quality: Some(quality), ..self }
    }

    /// Numbers that order the texts, whatever order they are given in; without them their order counts.
    #[must_use]
    pub fn with_ids(self, ids: &'a [u64]) -> Self {
        Self { ids: Some(ids), ..self }
    }

    /// Compares candidates by the exact similarity of their texts, over shingles of `shingle` tokens.
    #[must_use]
    pub fn with_texts(self, texts: &'a [&'a str], shingle: usize) -> Self {
        Self { texts: Some((texts, shingle)), ..self }
    }

    /// Number of bands and rows of each.
    pub fn bands(&self) -> (usize, usize) {
        (self.bands, self.rows)
    }

    /// Probability that a pair of this similarity is compared.
    pub fn recall(&self, similarity: f64) -> f64 {
        candidate(similarity, self.bands, self.rows)
    }

    fn check(&self, signatures: &[u32]) -> Result<usize, Error> {
        let count = signatures.len() / self.num_permutations;
        let length = |name, len| {
            if len == count { Ok(()) } else { Err(Error::Length { name, len, expected: count }) }
        };
        if count * self.num_permutations != signatures.len() {
            let (name, len) = ("signatures", signatures.len());
            return Err(Error::Length { name, len, expected: count * self.num_permutations });
        }
        if u32::try_from(count).is_err() {
            return Err(setting("number of texts", count, "below 2^32"));
        }
        if let Some(quality) = self.quality {
            length("quality", quality.len())?;
            if let Some(index) = quality.iter().position(|value| !value.is_finite()) {
                return Err(Error::NotFinite { name: "quality", index, value: quality[index] });
            }
        }
        if let Some(ids) = self.ids {
            length("ids", ids.len())?;
            let mut ordered = ids.to_vec();
            ordered.sort_unstable();
            if let Some(pair) = ordered.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::RepeatedId { id: pair[0] });
            }
        }
        if let Some((texts, shingle)) = self.texts {
            length("texts", texts.len())?;
            if shingle == 0 {
                return Err(setting("shingle", 0, "at least 1"));
            }
        }
        Ok(count)
    }
}

fn candidate(similarity: f64, bands: usize, rows: usize) -> f64 {
    let power = |base: f64, exponent: usize| base.powf(exponent as f64);
    1.0 - power(1.0 - power(similarity, rows), bands)
}

/// For each text the one that is kept in its place: itself, or the best of the cluster of copies it belongs to.
///
/// See [`Clustering`], which does the same in steps.
///
/// # Errors
///
/// As [`Clustering::new`].
pub fn near_duplicates(
    signatures: &[u32],
    how: &Copies<'_>,
    num_threads: usize,
) -> Result<Vec<u32>, Error> {
    let mut clustering = Clustering::new(signatures, how)?;
    while clustering.step(num_threads) {}
    Ok(clustering.finish())
}

/// A search for copies, in steps of one band for each thread.
///
/// Texts without tokens are copies of none. The result is the same for any number of threads and, with ids, for any
/// order of the texts. Memory beyond the arguments is at most `24 t n + 12 n` bytes for n texts and t threads, and the
/// shingles of two texts for each thread if texts are compared. Where more than 64 texts agree in a band, each is
/// compared with at most 64 that are unlike each other, so that time stays linear.
pub struct Clustering<'a> {
    search: Search<'a>,
    clusters: Clusters,
    count: usize,
    next_band: usize,
}

impl<'a> Clustering<'a> {
    /// Nothing is compared yet.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] for arrays that do not pair up, [`Error::NotFinite`] for a quality that is no number,
    /// [`Error::RepeatedId`].
    pub fn new(signatures: &'a [u32], how: &'a Copies<'a>) -> Result<Self, Error> {
        let count = how.check(signatures)?;
        let search = Search { signatures, how };
        Ok(Self { search, clusters: Clusters::new(count), count, next_band: 0 })
    }

    /// Compares the texts that agree in the next bands, one for each thread. Gives whether bands are left.
    pub fn step(&mut self, num_threads: usize) -> bool {
        let Self { search, count, next_band, .. } = self;
        let num_bands = threads(num_threads).min(search.how.bands - *next_band);
        let links = map(num_bands, num_threads, Vec::new, |keys, band| {
            search.links(keys, *next_band + band, *count)
        });
        self.next_band += num_bands;
        for (a, b) in links.into_iter().flatten() {
            self.clusters.join(a, b);
        }
        self.next_band < self.search.how.bands
    }

    /// For each text the one that is kept in its place, by what was compared.
    pub fn finish(mut self) -> Vec<u32> {
        keep_best(&mut self.clusters, self.search.how, self.count)
    }
}

/// Names each cluster by its best text.
fn keep_best(clusters: &mut Clusters, how: &Copies<'_>, count: usize) -> Vec<u32> {
    let numbers = 0..u32::try_from(count).expect("checked");
    let root_of: Vec<u32> = numbers.clone().map(|text| clusters.root(text)).collect();
    let mut best = root_of.clone();
    for text in numbers {
        let kept = &mut best[root_of[text as usize] as usize];
        if how.is_better(text, *kept) {
            *kept = text;
        }
    }
    root_of.iter().map(|&root| best[root as usize]).collect()
}

impl Copies<'_> {
    fn is_better(&self, a: u32, b: u32) -> bool {
        let (i, j) = (a as usize, b as usize);
        let quality = self.quality.and_then(|quality| quality[i].partial_cmp(&quality[j]));
        let order = || self.place(b).cmp(&self.place(a));
        quality.unwrap_or(std::cmp::Ordering::Equal).then_with(order).is_gt()
    }

    fn place(&self, text: u32) -> u64 {
        self.ids.map_or_else(|| text.into(), |ids| ids[text as usize])
    }
}

struct Search<'a> {
    signatures: &'a [u32],
    how: &'a Copies<'a>,
}

impl Search<'_> {
    fn signature(&self, text: u32) -> &[u32] {
        let length = self.how.num_permutations;
        &self.signatures[text as usize * length..][..length]
    }

    /// Pairs of texts that agree in a band and are copies, enough of them to join every cluster of the band.
    fn links(&self, keys: &mut Vec<(u64, u32)>, band: usize, count: usize) -> Vec<(u32, u32)> {
        let rows = band * self.how.rows..(band + 1) * self.how.rows;
        keys.clear();
        for text in 0..u32::try_from(count).expect("checked") {
            let rows = &self.signature(text)[rows.clone()];
            if rows.iter().any(|&row| row != u32::MAX) {
                keys.push((hash_rows(rows, band as u64), text));
            }
        }
        keys.sort_unstable_by_key(|&(key, text)| (key, self.how.place(text)));
        let mut links = Vec::new();
        for group in keys.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1) {
            self.link_group(group, &mut links);
        }
        links
    }

    fn link_group(&self, group: &[(u64, u32)], links: &mut Vec<(u32, u32)>) {
        let most = if group.len() <= ALL_PAIRS { ALL_PAIRS } else { MAX_LEADERS };
        let mut leaders: Vec<u32> = Vec::new();
        let mut clusters = Clusters::new(group.len());
        let mut leader_places: Vec<u32> = Vec::new();
        for (place, &(_, text)) in (0..).zip(group) {
            let mut is_copy = false;
            for (&leader, &leader_place) in leaders.iter().zip(&leader_places) {
                if clusters.root(place) != clusters.root(leader_place) && self.is_copy(leader, text)
                {
                    clusters.join(place, leader_place);
                    links.push((leader, text));
                    is_copy = true;
                }
            }
            if leaders.len() < most && (group.len() <= ALL_PAIRS || !is_copy) {
                leaders.push(text);
                leader_places.push(place);
            }
        }
    }

    fn is_copy(&self, a: u32, b: u32) -> bool {
        let (first, second) = (self.signature(a), self.signature(b));
        let equal = first.iter().zip(second).filter(|(a, b)| a == b).count();
        let length = self.how.num_permutations as f64;
        let threshold = self.how.threshold;
        let Some((texts, shingle)) = self.how.texts else {
            return equal as f64 >= threshold * length;
        };
        let deviation = (threshold * (1.0 - threshold) / length).sqrt();
        if (equal as f64) < (threshold - DEVIATIONS * deviation) * length {
            return false;
        }
        let set = |text: u32| shingles(texts[text as usize], shingle);
        similarity(&set(a), &set(b)) >= threshold
    }
}

fn hash_rows(rows: &[u32], band: u64) -> u64 {
    rows.iter()
        .fold(crate::hash::mix(band), |hash, &row| crate::hash::step(hash, row) ^ (hash >> 29))
}

/// Disjoint sets: union to the lower root, halved paths.
struct Clusters {
    parent: Vec<u32>,
}

impl Clusters {
    fn new(count: usize) -> Self {
        Self { parent: (0..u32::try_from(count).expect("checked")).collect() }
    }

    fn root(&mut self, mut text: u32) -> u32 {
        while self.parent[text as usize] != text {
            let above = self.parent[self.parent[text as usize] as usize];
            self.parent[text as usize] = above;
            text = above;
        }
        text
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b) as usize] = a.min(b);
    }
}
