//! What is likely to be read after a chunk that was read for the first time. Pure.
//!
//! Seen in starts of PHP, Python and Java images: of objects of up to 16 chunks that were read at all, nine in ten
//! chunks were read, in no order; of larger ones, like a JVM's modules, few. And what stands near a small
//! file in its layer is its folder, half of which is read.

use std::ops::Range;

use super::plan::Plan;

/// Objects of at most this many chunks are read as a whole.
const WHOLE_MAX: u32 = 16;
/// Chunks of a larger object read one after another before it counts as being read in order.
const IN_ORDER_AFTER: u32 = 2;
/// Larger objects are once one of this many chunks was: they are read widely.
const WIDELY: u32 = 4;
/// How many chunks of small objects are looked at after the one that was read.
const NEIGHBOURS: u32 = 6;

/// Positions to ask for, the likeliest first; some may be here already. What earlier starts read comes in their order and alone:
/// they knew what is read with it, and what they did not read would travel in place of what this one waits for next.
pub(super) fn of(plan: &Plan, position: u32, touched: impl Fn(Range<u32>) -> u32) -> Vec<u32> {
    let mut likely = if plan.expects(position) { Vec::new() } else { around(plan, position, touched) };
    likely.retain(|position| !plan.expects(*position));
    likely
}

fn around(plan: &Plan, position: u32, touched: impl Fn(Range<u32>) -> u32) -> Vec<u32> {
    let Some(place) = plan.large_object_at(position) else {
        let end = position.saturating_add(1 + NEIGHBOURS).min(plan.map().chunks.len() as u32);
        return (position + 1..end).filter(|next| plan.large_object_at(*next).is_none()).collect();
    };
    let (first, end) = (place.first_chunk, place.first_chunk + place.chunk_count);
    let in_order = || {
        position - first >= IN_ORDER_AFTER && touched(position - IN_ORDER_AFTER..position) == IN_ORDER_AFTER
    };
    let widely = || touched(first..end) * WIDELY >= place.chunk_count;
    match place.chunk_count <= WHOLE_MAX || widely() {
        true => (position + 1..end).chain(first..position).collect(),
        false if in_order() => (position + 1..end.min(position + 1 + WHOLE_MAX)).collect(),
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use image::record::{ChunkRef, ObjectPlace};
    use image::{Digest, Map};

    use super::*;

    /// Objects of so many chunks each, one after another.
    fn plan(objects: &[u32]) -> Plan {
        let mut map = Map::default();
        for (number, chunks) in (0u32..).zip(objects) {
            let first_chunk = map.chunks.len() as u32;
            for chunk in 0..*chunks {
                let digest = Digest::of(&[number.to_le_bytes(), chunk.to_le_bytes()].concat());
                map.chunks.push(ChunkRef { digest, plain_len: 10, stored_len: 10 });
            }
            let (digest, len) = (Digest::of(&number.to_le_bytes()), u64::from(*chunks) * 10);
            map.objects.push(ObjectPlace { digest, len, first_chunk, chunk_count: *chunks, offset: 0 });
        }
        map.objects.sort_by_key(|place| place.digest);
        Plan::new(Arc::new(map), &[], &[])
    }

    #[test]
    fn small_objects_bring_those_behind_them_and_no_large_one() {
        let plan = plan(&[1, 1, 1, 3, 1, 1]);
        assert_eq!(of(&plan, 0, |_| 0), [1, 2, 6]);
        assert!(of(&plan, 7, |_| 0).is_empty());
    }

    #[test]
    fn what_earlier_starts_read_brings_nothing_and_is_brought_by_nothing() {
        let map = plan(&[1, 1, 1, 1]).map().clone();
        let chunk = |at: usize| map.chunks[at].digest;
        // The second is in the profile alone: nothing brings it.
        let plan = Plan::new(map.clone(), &[chunk(0), chunk(2)], &[chunk(0), chunk(1)]);
        assert!(of(&plan, 0, |_| 0).is_empty());
        assert_eq!(of(&plan, 1, |_| 0), [2, 3]);
        let plan = Plan::new(map.clone(), &[chunk(2)], &[chunk(2)]);
        assert_eq!(of(&plan, 0, |_| 0), [1, 3]);
    }

    #[test]
    fn an_object_of_a_few_chunks_comes_whole() {
        let plan = plan(&[1, 4]);
        assert_eq!(of(&plan, 3, |_| 0), [4, 1, 2]);
    }

    #[test]
    fn a_large_object_comes_ahead_of_who_reads_it_in_order_or_widely() {
        let (plan, last) = (plan(&[40]), 39);
        assert!(of(&plan, 20, |run| if run.len() == 2 { 1 } else { 9 }).is_empty());
        assert_eq!(of(&plan, 20, |run| if run.len() == 2 { 2 } else { 9 }), (21..37).collect::<Vec<_>>());
        assert_eq!(of(&plan, 30, |run| if run.len() == 2 { 0 } else { 10 }).len(), last);
    }
}
