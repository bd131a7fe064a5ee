//! How much of its memory budget a node spends on bytes that are on their way.
//!
//! Each share is what serves a start best, or a part of the budget where that is smaller. Together they are at most two
//! thirds of what the program itself leaves of a budget: the rest is for the tables of images, for images that are being
//! opened, and for what the kernel holds for us.

/// All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Verified chunks that were read lately. A start's reads come in bursts; this bridges the time until their
    /// objects are on the disk.
    pub memory: u64,
    /// Chunks that were asked for ahead of any reader, until one comes.
    pub held: u64,
    /// Plain bytes waiting for the disk at which lower classes ask for nothing more. Reads go on; at twice
    /// this their chunks are not written any more, and fetched again by the background.
    pub writing: u64,
    /// Stored bytes in flight for waiting reads. Twice what a gigabit link holds at 20 ms; what is beyond
    /// waits here, not in the pipe, and not in our memory.
    pub demand: u64,
    /// Stored bytes of a profile that are asked ahead. While this is in flight the next part is asked, so
    /// that the whole profile costs one round trip.
    pub prefetch: u64,
    /// Stored bytes in flight for the background: what a read that comes now finds before it in the link.
    /// 40 ms at 200 Mbit/s, and enough to fill that link at a round trip of 40 ms.
    pub background: u64,
}

const MIB: u64 = 1024 * 1024;

/// With a budget that is no bound.
const FULL: Buffers = Buffers {
    memory: 16 * MIB,
    held: 16 * MIB,
    writing: 8 * MIB,
    demand: 6 * MIB,
    prefetch: 4 * MIB,
    background: MIB,
};
/// What the program takes with no image at all, with the process that holds the connection to the kernel: measured.
const PROGRAM: u64 = 14 * MIB;
/// The least that every share needs for one chunk and its neighbours to be under way.
const LEAST: u64 = MIB;

impl Buffers {
    /// The shares of a budget for the whole process.
    pub fn within(budget: u64) -> Buffers {
        let left = budget.saturating_sub(PROGRAM);
        let share = |parts: u64, full: u64| (left / parts).clamp(LEAST, full);
        Buffers {
            memory: share(8, FULL.memory),
            held: share(8, FULL.held),
            // Twice that may be waiting.
            writing: share(16, FULL.writing),
            demand: share(8, FULL.demand),
            prefetch: share(12, FULL.prefetch),
            background: share(32, FULL.background),
        }
    }
}

impl Default for Buffers {
    fn default() -> Buffers {
        FULL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(buffers: Buffers) -> u64 {
        let Buffers { memory, held, writing, demand, prefetch, background } = buffers;
        memory + held + 2 * writing + demand + prefetch + background
    }

    #[test]
    fn a_third_of_what_the_program_leaves_stays_free() {
        for budget in [32, 41, 74, 126, 1000] {
            let buffers = Buffers::within(budget * MIB);
            assert!(most(buffers) <= (budget * MIB - PROGRAM) * 2 / 3, "{budget} MiB: {buffers:?}");
        }
        assert_eq!(Buffers::within(1000 * MIB), FULL);
        assert!(Buffers::within(0).memory >= LEAST);
    }
}
