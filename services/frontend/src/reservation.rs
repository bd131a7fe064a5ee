//! How much of a node's memory streaming may take: a share that falls as the node grows.

const GIB: u64 = 1 << 30;

/// A node with less memory than this reserves nothing.
const SMALLEST_NODE: u64 = GIB;

/// Up to which size of the node which share counts, in parts of ten thousand; each for what lies above the one before.
const SHARES: [(u64, u64); 5] =
    [(4 * GIB, 100), (8 * GIB, 80), (16 * GIB, 40), (128 * GIB, 24), (u64::MAX, 8)];
const WHOLE: u64 = 10_000;

/// The memory that is reserved for streaming on a node with `node_memory_bytes`, in bytes.
///
/// Nothing below 1 GiB; else 1 % of the first 4 GiB, 0.8 % of the next 4, 0.4 % of the next 8, 0.24 % of the next 112
/// and 0.08 % of what is above. Rounded down to a whole byte, share by share.
pub fn reservation(node_memory_bytes: u64) -> u64 {
    if node_memory_bytes < SMALLEST_NODE {
        return 0;
    }
    let mut below = 0;
    let mut reserved = 0;
    for (up_to, share) in SHARES {
        let part = node_memory_bytes.min(up_to).saturating_sub(below);
        // Divided first where a product would not fit; what that rounds away is less than a mebibyte's share.
        reserved += if part > u64::MAX / WHOLE { part / WHOLE * share } else { part * share / WHOLE };
        below = up_to;
    }
    reserved
}

/// The memory of this machine, in bytes, as the kernel counts it (`MemTotal`: without what it keeps for itself).
pub fn machine_memory() -> anyhow::Result<u64> {
    use anyhow::Context as _;
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    total(&text).context("no MemTotal in /proc/meminfo")
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Rounded to hundredths of a mebibyte, as one writes it down by hand.
    fn hundredths(node_gib: u64) -> u64 {
        (reservation(node_gib * GIB) * 100 + MIB / 2) / MIB
    }

    #[test]
    fn the_shares_add_up() {
        assert_eq!(reservation(0), 0);
        assert_eq!(reservation(GIB - 1), 0);
        assert_eq!(hundredths(1), 10_24);
        assert_eq!(hundredths(4), 40_96);
        assert_eq!(hundredths(8), 73_73);
        assert_eq!(hundredths(16), 106_50);
        assert_eq!(hundredths(128), 381_75);
        assert_eq!(hundredths(256), 486_60);
        assert_eq!(reservation(u64::MAX) / GIB, 13_743_895);
    }

    proptest! {
        #[test]
        fn a_larger_node_never_reserves_less(small in any::<u64>(), more in any::<u64>()) {
            let large = small.saturating_add(more);
            prop_assert!(reservation(small) <= reservation(large));
            prop_assert!(reservation(large) <= large / 100);
        }
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2048 * 1024));
        assert_eq!(total("MemTotal: many\n"), None);
        assert!(machine_memory().unwrap() > 0);
    }
}
