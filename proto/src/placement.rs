//! Which cache replica a chunk belongs to: rendezvous hashing.
//!
//! Every replica scores every chunk, and the highest score wins. All nodes agree without talking to
//! each other; when a replica goes, only its own chunks move, each to the replica that was its
//! second, and when one comes, it takes its share from all others evenly.

/// `endpoints` in the order in which a reader should ask them for `digest`: the first is where the
/// chunk belongs, the others are where to turn to when it fails.
pub fn rank<'a>(endpoints: &'a [String], digest: &[u8]) -> Vec<&'a str> {
    let chunk = fold(digest);
    let mut scored: Vec<(u64, &str)> = endpoints
        .iter()
        .map(|endpoint| (mix(fold(endpoint.as_bytes()) ^ chunk), endpoint.as_str()))
        .collect();
    // By name where scores are equal: every node must come to the same order.
    scored.sort_unstable_by(|one, other| other.cmp(one));
    scored.dedup();
    scored.into_iter().map(|(_, endpoint)| endpoint).collect()
}

/// 64 bits of any bytes (FNV-1a); fixed for ever, as nodes of different versions must agree.
fn fold(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash)
}

/// Spreads every bit over all others (the finalizer of SplitMix64).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const CHUNKS: u32 = 10_000;

    fn replicas(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("http://10.0.0.{number}:7460")).collect()
    }

    fn firsts(endpoints: &[String]) -> Vec<&str> {
        (0..CHUNKS).map(|chunk| rank(endpoints, &chunk.to_le_bytes())[0]).collect()
    }

    #[test]
    fn shares_are_even() {
        let endpoints = replicas(5);
        let mut shares: HashMap<&str, u32> = HashMap::new();
        for first in firsts(&endpoints) {
            *shares.entry(first).or_default() += 1;
        }
        let expected = CHUNKS / 5;
        assert_eq!(shares.len(), 5);
        assert!(shares.values().all(|share| share.abs_diff(expected) < expected / 10), "{shares:?}");
    }

    #[test]
    fn a_replica_that_goes_moves_only_its_own_chunks() {
        let (all, fewer) = (replicas(5), replicas(4));
        for (chunk, (before, after)) in firsts(&all).into_iter().zip(firsts(&fewer)).enumerate() {
            let second = rank(&all, &(chunk as u32).to_le_bytes())[1];
            assert_eq!(after, if before == all[4] { second } else { before });
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let mut endpoints = replicas(7);
        let before: Vec<String> = rank(&endpoints, b"chunk").into_iter().map(str::to_owned).collect();
        endpoints.reverse();
        endpoints.push(endpoints[0].clone());
        assert_eq!(rank(&endpoints, b"chunk"), before);
        assert!(rank(&[], b"chunk").is_empty());
    }
}
