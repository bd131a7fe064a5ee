//! Which objects exist: what the images that this node has name, by digest and by inode.
//!
//! A map's objects are sorted by digest and an inode is the head of a digest, so both look-ups are
//! binary searches in the maps themselves; nothing is copied out of them.
//!
//! Concurrency: any thread; the lock is never held across anything that waits.

use std::ffi::OsStr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use image::Digest;
use image::map::Map;
use image::record::ObjectPlace;

/// Inodes below are the directories', with room to spare.
const FIRST_OBJECT: u64 = 1024;

/// An object that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) digest: Digest,
    pub(crate) len: u64,
}

/// Two objects would have the same inode number, so the image cannot be served beside the others.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("object {digest} needs an inode number that {} has", .other.map_or("a directory".to_owned(), |other| format!("object {other}")))]
pub(crate) struct InodeTaken {
    digest: Digest,
    other: Option<Digest>,
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    images: RwLock<Vec<Image>>,
}

#[derive(Debug)]
struct Image {
    manifest: String,
    map: Arc<Map>,
}

impl Registry {
    /// Makes the objects of an image known; again for the same image: nothing changes.
    pub(crate) fn add(&self, manifest: &str, map: Arc<Map>) -> Result<(), InodeTaken> {
        let mut images = self.write();
        if images.iter().any(|image| image.manifest == manifest) {
            return Ok(());
        }
        check_alone(&map)?;
        images.iter().try_for_each(|image| check_beside(&map, &image.map))?;
        images.push(Image { manifest: manifest.to_owned(), map });
        Ok(())
    }

    /// Keeps of an image's map only which objects there are.
    pub(crate) fn rest(&self, manifest: &str) {
        if let Some(image) = self.write().iter_mut().find(|image| image.manifest == manifest) {
            let objects = image.map.objects.to_vec();
            image.map = Arc::new(Map { chunks: Vec::new(), objects });
        }
    }

    pub(crate) fn remove(&self, manifest: &str) {
        self.write().retain(|image| image.manifest != manifest);
    }

    /// The object `<shard>/<rest>`.
    pub(crate) fn by_name(&self, shard: u8, rest: &OsStr) -> Option<Known> {
        let digest: Digest = format!("{shard:02x}{}", rest.to_str()?).parse().ok()?;
        let found = self.by_inode(inode(&digest))?;
        (found.digest == digest).then_some(found)
    }

    pub(crate) fn by_inode(&self, number: u64) -> Option<Known> {
        self.read().iter().find_map(|image| {
            let objects = &image.map.objects;
            let place = objects.get(objects.partition_point(|place| inode(&place.digest) < number))?;
            (inode(&place.digest) == number).then_some(Known { digest: place.digest, len: place.len })
        })
    }

    // A thread that panicked cannot have left the list half changed.
    fn read(&self) -> RwLockReadGuard<'_, Vec<Image>> {
        self.images.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Image>> {
        self.images.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inode number of an object: as ordered as digests are.
pub(super) fn inode(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn check_alone(map: &Map) -> Result<(), InodeTaken> {
    if let Some(first) = map.objects.first().filter(|first| inode(&first.digest) < FIRST_OBJECT) {
        return Err(InodeTaken { digest: first.digest, other: None });
    }
    map.objects.windows(2).try_for_each(|pair| check_pair(&pair[0].digest, &pair[1].digest))
}

/// Walks both sorted lists at once.
fn check_beside(one: &Map, other: &Map) -> Result<(), InodeTaken> {
    let mut others = other.objects.iter().peekable();
    for ObjectPlace { digest, .. } in &one.objects {
        while others.next_if(|place| inode(&place.digest) < inode(digest)).is_some() {}
        if let Some(place) = others.peek() {
            check_pair(digest, &place.digest)?;
        }
    }
    Ok(())
}

fn check_pair(digest: &Digest, other: &Digest) -> Result<(), InodeTaken> {
    if digest != other && inode(digest) == inode(other) {
        return Err(InodeTaken { digest: *digest, other: Some(*other) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(head: u64, tail: u8) -> Digest {
        let mut bytes = [tail; 32];
        bytes[..8].copy_from_slice(&head.to_be_bytes());
        Digest::from_bytes(bytes)
    }

    fn map(digests: &[Digest]) -> Arc<Map> {
        let place = |digest: &Digest| ObjectPlace {
            digest: *digest,
            len: 7,
            first_chunk: 0,
            chunk_count: 1,
            offset: 0,
        };
        let mut objects: Vec<_> = digests.iter().map(place).collect();
        objects.sort_by_key(|place| place.digest);
        Arc::new(Map { chunks: Vec::new(), objects })
    }

    #[test]
    fn finds_by_name_and_by_inode_while_an_image_names_it() {
        let registry = Registry::default();
        let (shared, own) = (digest(5000, 1), digest(6000, 2));
        registry.add("one", map(&[shared])).unwrap();
        registry.add("two", map(&[shared, own])).unwrap();
        let name = own.to_string();
        assert_eq!(registry.by_name(0, OsStr::new(&name[2..])).map(|known| known.digest), Some(own));
        assert_eq!(registry.by_inode(6000), Some(Known { digest: own, len: 7 }));
        assert_eq!(registry.by_inode(5999), None);
        assert_eq!(registry.by_name(1, OsStr::new(&name[2..])), None);
        assert_eq!(registry.by_name(0, OsStr::new("..")), None);
        registry.rest("two");
        registry.remove("one");
        assert!(registry.by_inode(5000).is_some());
        registry.remove("two");
        assert!(registry.by_inode(5000).is_none());
    }

    #[test]
    fn refuses_two_objects_with_one_inode() {
        let registry = Registry::default();
        let (first, second) = (digest(5000, 1), digest(5000, 2));
        let both = InodeTaken { digest: first, other: Some(second) };
        assert_eq!(registry.add("alone", map(&[second, first])), Err(both));
        registry.add("one", map(&[digest(4000, 1), first])).unwrap();
        assert_eq!(
            registry.add("two", map(&[second])),
            Err(InodeTaken { digest: second, other: Some(first) })
        );
        assert!(registry.add("low", map(&[digest(257, 1)])).is_err());
        // A refused image leaves nothing behind.
        registry.remove("one");
        assert_eq!(registry.by_inode(5000), None);
    }
}
