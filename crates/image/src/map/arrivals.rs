//! Which objects a chunk brings: the map read the other way round.

use crate::limits::ENTRIES_MAX;
use crate::map::Map;

/// For each chunk, the objects that have bytes in it. Four bytes for each such pair.
#[derive(Clone, Debug)]
pub struct Arrivals {
    /// Where the objects of a chunk begin; one more at the end.
    starts: Vec<u32>,
    /// Positions in [`Map::objects`].
    objects: Vec<u32>,
}

impl Arrivals {
    /// Pairs of object and chunk: every object in one, and large ones in as many more.
    pub(super) const MAX: usize = 2 * ENTRIES_MAX;

    pub fn of(map: &Map) -> Arrivals {
        let runs = || {
            map.objects.iter().enumerate().map(|(at, place)| {
                let first = place.first_chunk as usize;
                (at as u32, first..first + place.chunk_count as usize)
            })
        };
        let mut starts = vec![0u32; map.chunks.len() + 1];
        for (_, run) in runs() {
            starts[run].iter_mut().for_each(|count| *count += 1);
        }
        let mut total = 0;
        for start in &mut starts {
            total += std::mem::replace(start, total);
        }
        let mut next = starts.clone();
        let mut objects = vec![0; total as usize];
        for (at, run) in runs() {
            for next in &mut next[run] {
                objects[*next as usize] = at;
                *next += 1;
            }
        }
        Arrivals { starts, objects }
    }

    /// Positions in [`Map::objects`] of what has bytes in a chunk, sorted.
    pub fn objects_in(&self, chunk: u32) -> &[u32] {
        let at = chunk as usize;
        match (self.starts.get(at), self.starts.get(at + 1)) {
            (Some(from), Some(to)) => &self.objects[*from as usize..*to as usize],
            _ => &[],
        }
    }
}
