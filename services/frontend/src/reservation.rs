//! How much of a node's memory is set aside for streaming.

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Up to how much memory, and which part of it, in hundredths of a percent: the figures of Google's managed image
/// streaming for Kubernetes nodes.
const STEPS: [(u64, u64); 5] =
    [(4 * GIB, 100), (8 * GIB, 80), (16 * GIB, 40), (128 * GIB, 24), (u64::MAX, 8)];
/// A node with less has nothing set aside.
const SMALLEST: u64 = 1_000_000_000;
/// What a frontend needs to open large images, set aside or not: more than the share of a node of 3 GiB.
pub const LEAST: u64 = 32 * MIB;

/// Bytes to set aside on a node with so much memory: 1 % of the first 4 GiB, 0.8 % of the next 4, 0.4 % of the next 8,
/// 0.24 % of the next 112, 0.08 % of what is beyond; nothing under 1 GB.
pub fn reservation(node_memory: u64) -> u64 {
    if node_memory < SMALLEST {
        return 0;
    }
    let (mut below, mut reserved) = (0, 0);
    for (until, hundredths) in STEPS {
        let part = node_memory.min(until).saturating_sub(below);
        reserved += u128::from(part) * u128::from(hundredths) / 10_000;
        below = until;
    }
    u64::try_from(reserved).unwrap_or(u64::MAX)
}

/// What the frontend of a node with so much memory keeps within.
pub fn budget(node_memory: u64) -> u64 {
    reservation(node_memory).max(LEAST)
}

/// Memory of this machine in bytes.
pub fn node_memory() -> u64 {
    let system = rustix::system::sysinfo();
    system.totalram.saturating_mul(u64::from(system.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_steps() {
        for (memory, expected) in [
            (999_999_999, 0.0),
            (2 * GIB, 20.48),
            (4 * GIB, 40.96),
            (8 * GIB, 73.728),
            (16 * GIB, 106.496),
            (32 * GIB, 145.8176),
            (128 * GIB, 381.7472),
            (256 * GIB, 486.6048),
        ] {
            let reserved = reservation(memory) as f64 / MIB as f64;
            assert!((reserved - expected).abs() < 0.001, "{memory}: {reserved} MiB, {expected} expected");
        }
        assert!(reservation(u64::MAX) > 0);
    }

    #[test]
    fn a_small_node_still_works() {
        assert_eq!(budget(GIB / 2), LEAST);
        assert_eq!(budget(16 * GIB), reservation(16 * GIB));
        assert!(node_memory() > 100 * MIB);
    }
}
