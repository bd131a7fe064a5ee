//! What is learned from starts: which chunks the next one will ask for, and in which order.
//!
//! The last [`STARTS_MAX`] starts are kept as they were reported, and the profile is computed from
//! them. A chunk belongs to it when at least half of the starts asked for it (with three or fewer,
//! when any did: better one chunk too many than a wait); it stands where the median start asked.

use std::collections::{HashMap, HashSet};

use image::encoding::{self, EncodingError, Format};
use image::{Digest, Profile};
use serde::{Deserialize, Serialize};

/// Starts that count. Older ones are forgotten: an image is used differently after a while.
const STARTS_MAX: usize = 8;
/// Chunks of one start that count, and chunks of a profile: some 1 GiB, more than a start reads.
const CHUNKS_MAX: usize = 4096;
/// Up to so many starts nothing is left out.
const FEW_STARTS: usize = 3;

const HISTORY: Format = Format { name: "start history", magic: *b"slSH", version: 2 };

/// The last starts of an image, the oldest first. One of no start at all holds a guess instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// All starts that were ever reported.
    total: u32,
    #[serde(deserialize_with = "encoding::at_most::<_, _, STARTS_MAX>")]
    starts: Vec<Chunks>,
    /// Chunks of the profile that are stored as small as they get.
    recompressed: Chunks,
}

/// Each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Chunks(#[serde(deserialize_with = "encoding::at_most::<_, _, CHUNKS_MAX>")] Vec<Digest>);

impl Chunks {
    fn of(chunks: &[Digest]) -> Chunks {
        let mut seen = HashSet::new();
        let distinct = chunks.iter().filter(|chunk| seen.insert(**chunk)).take(CHUNKS_MAX);
        Chunks(distinct.copied().collect())
    }
}

impl History {
    pub(crate) fn decode(encoded: &[u8]) -> Result<History, EncodingError> {
        encoding::decode(HISTORY, encoded)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, EncodingError> {
        encoding::encode(HISTORY, self)
    }

    /// All that were ever reported.
    pub(crate) fn starts(&self) -> u32 {
        self.total
    }

    /// For those who ask what is known.
    pub(crate) fn summary(&self) -> proto::Starts {
        let profile = self.profile();
        let chunks = profile.chunks.len();
        let recompressed = chunks - self.to_recompress(&profile).len();
        proto::Starts { reported: self.total, chunks: chunks as u32, recompressed: recompressed as u32 }
    }

    /// Whether there is neither a start nor a guess.
    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// What starts will probably read. The first that is reported knows better.
    pub(crate) fn guess(&mut self, chunks: &[Digest]) {
        if self.total == 0 {
            self.starts = vec![Chunks::of(chunks)];
        }
    }

    /// Adds one start's chunks, in the order it first asked for them.
    pub(crate) fn add(&mut self, chunks: &[Digest]) {
        if self.total == 0 {
            self.starts.clear();
        }
        self.starts.push(Chunks::of(chunks));
        if self.starts.len() > STARTS_MAX {
            self.starts.remove(0);
        }
        self.total = self.total.saturating_add(1);
    }

    /// Chunks of the profile, which is this history's, that nobody has compressed again yet, in its order.
    pub(crate) fn to_recompress(&self, profile: &Profile) -> Vec<Digest> {
        let done: HashSet<Digest> = self.recompressed.0.iter().copied().collect();
        profile.chunks.iter().copied().filter(|chunk| !done.contains(chunk)).collect()
    }

    /// Notes that these are as small as they get. What is no longer in the profile is forgotten.
    pub(crate) fn recompressed(&mut self, chunks: &[Digest]) {
        let done: HashSet<Digest> = self.recompressed.0.iter().chain(chunks).copied().collect();
        let of_profile: Vec<Digest> =
            self.profile().chunks.into_iter().filter(|chunk| done.contains(chunk)).collect();
        self.recompressed = Chunks::of(&of_profile);
    }

    pub(crate) fn forget_recompressed(&mut self) {
        self.recompressed = Chunks::default();
    }

    /// What the next start is expected to ask for.
    pub(crate) fn profile(&self) -> Profile {
        let needed = if self.starts.len() > FEW_STARTS { self.starts.len().div_ceil(2) } else { 1 };
        let mut positions: HashMap<Digest, Vec<usize>> = HashMap::new();
        for Chunks(chunks) in &self.starts {
            for (position, chunk) in chunks.iter().enumerate() {
                positions.entry(*chunk).or_default().push(position);
            }
        }
        let mut expected: Vec<(usize, Digest)> = positions
            .into_iter()
            .filter(|(_, positions)| positions.len() >= needed)
            .map(|(chunk, mut positions)| {
                positions.sort_unstable();
                (positions[(positions.len() - 1) / 2], chunk)
            })
            .collect();
        // The digest decides between equals, for the profile to be a function of the starts.
        expected.sort_unstable();
        expected.truncate(CHUNKS_MAX);
        Profile { starts: self.total, chunks: expected.into_iter().map(|(_, chunk)| chunk).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(names: &str) -> Vec<Digest> {
        names.bytes().map(|name| Digest::of(&[name])).collect()
    }

    fn learned(starts: &[&str]) -> Profile {
        let mut history = History::default();
        starts.iter().for_each(|start| history.add(&chunks(start)));
        let encoded = history.encode().unwrap();
        assert_eq!(History::decode(&encoded).unwrap(), history);
        history.profile()
    }

    #[test]
    fn one_start_is_repeated_as_it_was() {
        assert_eq!(learned(&["cab"]), Profile { starts: 1, chunks: chunks("cab") });
        assert_eq!(learned(&["caba"]).chunks, chunks("cab"), "the first time counts");
        assert_eq!(learned(&[]), Profile::default());
        assert_eq!(learned(&[""]), Profile { starts: 1, chunks: vec![] });
    }

    #[test]
    fn the_median_decides_the_order() {
        assert_eq!(learned(&["abc", "abc", "cab"]).chunks, chunks("abc"));
        assert_eq!(learned(&["xabc", "abc", "abc", "abc"]).chunks, chunks("abc"));
    }

    #[test]
    fn what_few_starts_asked_for_is_left_out_once_there_are_enough() {
        assert_eq!(learned(&["ab", "ac", "a"]).chunks.len(), 3);
        let profile = learned(&["ab", "ac", "a", "ac"]);
        assert_eq!(profile, Profile { starts: 4, chunks: chunks("ac") });
    }

    #[test]
    fn a_guess_counts_until_there_is_a_start() {
        let mut history = History::default();
        assert!(history.is_empty());
        history.guess(&chunks("xyx"));
        assert_eq!(history.profile(), Profile { starts: 0, chunks: chunks("xy") });
        history.add(&chunks("a"));
        history.guess(&chunks("xy"));
        assert_eq!(history.profile(), Profile { starts: 1, chunks: chunks("a") });
    }

    #[test]
    fn old_starts_and_long_ones_are_bounded() {
        let mut history = History::default();
        history.add(&chunks("z"));
        let many: Vec<Digest> = (0..CHUNKS_MAX as u32 + 9).map(|n| Digest::of(&n.to_le_bytes())).collect();
        (0..STARTS_MAX).for_each(|_| history.add(&many));
        let profile = history.profile();
        assert_eq!(profile.chunks, many[..CHUNKS_MAX]);
        assert_eq!(profile.starts, STARTS_MAX as u32 + 1);
    }
}
