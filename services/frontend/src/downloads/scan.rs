//! Finds out what of an image is on the disk already. Blocking.

use std::collections::HashSet;
use std::io;

use image::record::ObjectPlace;
use image::{Digest, Map};

use super::plan::{Plan, Target};
use crate::objects::{Form, Objects, PutError};

/// What of an image is local.
#[derive(Debug, Default)]
pub(super) struct Local {
    pub(super) whole: Vec<Digest>,
    pub(super) pieces: Vec<(Digest, u32)>,
}

impl Local {
    pub(super) fn tell(&self, plan: &mut Plan) {
        for (object, index) in &self.pieces {
            plan.mark_piece(object, *index);
        }
        for object in &self.whole {
            plan.mark_local(object);
        }
    }

    fn look(&mut self, objects: &Objects, map: &Map, place: &ObjectPlace) -> io::Result<()> {
        if objects.contains_of_len(&place.digest, place.len) {
            self.whole.push(place.digest);
        } else if place.chunk_count == 0 {
            // All of it is known.
            self.note(place, objects.put_hollow(place))?;
        } else if map.is_pieced(place) {
            let have = objects.load_partial(map, place)?;
            if have.all() {
                // An earlier process ended between the last piece and the check.
                return self.note(place, objects.finish(place, Form::of(map, &place.digest)));
            }
            let here = (0..place.chunk_count as usize).filter(|index| have.get(*index));
            self.pieces.extend(here.map(|index| (place.digest, index as u32)));
        }
        Ok(())
    }

    fn note(&mut self, place: &ObjectPlace, kept: Result<(), PutError>) -> io::Result<()> {
        match kept {
            Ok(()) => self.whole.push(place.digest),
            // Dropped: it is fetched anew.
            Err(PutError::Mismatch(_)) => {}
            // One without data, of which nothing is to be fetched: reads of it need no file.
            Err(PutError::Full(_)) if place.chunk_count == 0 => {}
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }
}

/// Looks for everything that stands in the chunks that are to be prefetched: little, and a start waits
/// for it.
pub(super) fn of_prefetch(objects: &Objects, plan: &Plan, profile: &[Digest]) -> io::Result<Local> {
    let mut local = Local::default();
    let mut large = HashSet::new();
    for position in profile.iter().flat_map(|chunk| plan.positions_of(chunk)) {
        for target in plan.targets(*position) {
            match target {
                Target::Whole { object, len, .. } if objects.contains_of_len(&object, len.into()) => {
                    local.whole.push(object);
                }
                Target::Part { place, .. } if large.insert(place.digest) => {
                    local.look(objects, plan.map(), &place)?;
                }
                _ => {}
            }
        }
    }
    Ok(local)
}

/// Looks for everything.
pub(super) fn of_all(objects: &Objects, map: &Map) -> io::Result<Local> {
    let mut local = Local::default();
    for place in &map.objects {
        local.look(objects, map, place)?;
    }
    Ok(local)
}
