//! What is expected of the starts of an image that nobody has started, from those of another image of its repository.
//!
//! Two builds of the same software share most files. A chunk that both images have is expected as it was. Small files travel
//! packed, and may be packed otherwise in the new image: then the chunks count that their unchanged ones are in now.

use std::collections::{HashMap, HashSet};

use image::map::Arrivals;
use image::{Digest, Map};

/// Chunks of `new`, in the order in which starts of `old` asked for what is in them.
pub(crate) fn seed(old: &Map, learned: &[Digest], new: &Map) -> Vec<Digest> {
    let kept: HashSet<Digest> = new.chunks.iter().map(|chunk| chunk.digest).collect();
    let mut positions = HashMap::new();
    for (position, chunk) in (0u32..).zip(&old.chunks) {
        positions.entry(chunk.digest).or_insert(position);
    }
    let arrivals = Arrivals::of(old);
    let packed_anew = |chunk: &Digest| {
        let objects = positions.get(chunk).map_or(&[][..], |position| arrivals.objects_in(*position));
        let objects = objects.iter().filter_map(|object| old.objects.get(*object as usize));
        // Of a large object that did not change every chunk is there; one that changed is another object.
        let small = objects.filter(|place| place.chunk_count == 1);
        let places =
            small.filter_map(|place| new.place(&place.digest)).filter(|place| place.chunk_count == 1);
        places
            .filter_map(|place| Some(new.chunks.get(place.first_chunk as usize)?.digest))
            .collect::<Vec<_>>()
    };
    let mut seen = HashSet::new();
    let expected = learned.iter().flat_map(|chunk| match kept.contains(chunk) {
        true => vec![*chunk],
        false => packed_anew(chunk),
    });
    expected.filter(|chunk| seen.insert(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use image::record::{ChunkRef, ObjectPlace};

    use super::*;

    /// A map of chunks, each with the objects that it holds; one that stands in several fills them.
    fn map(chunks: &[&str]) -> Map {
        let mut objects: Vec<ObjectPlace> = Vec::new();
        for (position, names) in (0u32..).zip(chunks) {
            for name in names.bytes() {
                let digest = Digest::of(&[name]);
                match objects.iter_mut().find(|object| object.digest == digest) {
                    Some(object) => object.chunk_count += 1,
                    None => objects.push(ObjectPlace {
                        digest,
                        len: 1,
                        first_chunk: position,
                        chunk_count: 1,
                        offset: 0,
                    }),
                }
            }
        }
        objects.sort_by_key(|object| object.digest);
        let chunk = |(position, names): (usize, &&str)| {
            // A piece of a large object is named by its place in it, a pack by what is in it.
            let large = names.len() == 1 && chunks.iter().filter(|other| *other == names).count() > 1;
            let piece = chunks[..position].iter().filter(|other| *other == names).count();
            let digest = if large { of(&format!("{names}{piece}")) } else { of(names) };
            ChunkRef { digest, plain_len: 1, stored_len: 1 }
        };
        Map { chunks: chunks.iter().enumerate().map(chunk).collect(), objects, ..Map::default() }
    }

    fn of(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn names(names: &[&str]) -> Vec<Digest> {
        names.iter().map(|name| of(name)).collect()
    }

    #[test]
    fn what_both_images_have_is_expected_in_its_order() {
        let (old, new) = (map(&["ab", "L", "L", "cd"]), map(&["cd", "L", "L", "xy"]));
        assert_eq!(seed(&old, &names(&["cd", "L1", "L0"]), &new), names(&["cd", "L1", "L0"]));
    }

    #[test]
    fn small_files_that_are_packed_anew_are_found_again_and_changed_ones_are_not() {
        let (old, new) = (map(&["abc", "de"]), map(&["xb", "ca", "yz"]));
        assert_eq!(seed(&old, &names(&["de", "abc"]), &new), {
            let mut expected = names(&["xb", "ca"]);
            // Objects stand sorted by digest.
            if of("b") > of("a").min(of("c")) {
                expected.reverse();
            }
            expected
        });
    }

    #[test]
    fn what_neither_has_is_passed_over() {
        let (old, new) = (map(&["ab", "L", "L"]), map(&["cd", "M", "M"]));
        assert_eq!(seed(&old, &names(&["ab", "L0", "unknown"]), &new), []);
        assert_eq!(seed(&Map::default(), &names(&["ab"]), &new), []);
    }
}
