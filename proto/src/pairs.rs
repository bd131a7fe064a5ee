//! Names with values, as policies are told them.

use crate::Pair;

/// Labels or annotations in one message: in bytes, names and values together.
const PAIRS_BYTES_MAX: usize = 64 * 1024;

impl Pair {
    /// As many pairs as fit: an image may have megabytes of labels, and a message has room for one.
    pub fn bounded(pairs: impl IntoIterator<Item = (String, String)>) -> Vec<Pair> {
        let mut bytes = 0;
        let pairs = pairs.into_iter().map(|(name, value)| Pair { name, value });
        let fits = |pair: &Pair| {
            bytes += pair.name.len() + pair.value.len();
            bytes <= PAIRS_BYTES_MAX
        };
        pairs.take_while(fits).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_beyond_a_bound_are_left_out() {
        let labels = (0..1_000).map(|number| (number.to_string(), "x".repeat(1_000)));
        let kept = Pair::bounded(labels);
        assert!(kept.len() > 10 && kept.len() < 70, "{}", kept.len());
    }
}
