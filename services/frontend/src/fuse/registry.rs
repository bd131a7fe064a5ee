//! Which objects exist: what the images that this node has name, by digest and by inode.
//!
//! A map's objects are sorted by digest and an inode is the head of a digest, so both look-ups are
//! binary searches: in the maps of images that are incomplete, in files of those that are at rest. Of those only files
//! are read here that were opened while they were missing.
//!
//! Concurrency: any thread; the lock is never held across anything that waits, nor while a file is read.

use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use image::Digest;
use image::map::Map;
use tokio::sync::watch;

use crate::objects::{Name, Names};

/// Inodes below are the directories', with room to spare.
const FIRST_OBJECT: u64 = 1024;

/// An object that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) digest: Digest,
    pub(crate) len: u64,
    /// Without its holes.
    pub(crate) data_len: u64,
}

/// Two objects would have the same inode number, so the image cannot be served beside the others.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("object {digest} needs an inode number that {} has", .other.map_or("a directory".to_owned(), |other| format!("object {other}")))]
pub(crate) struct InodeTaken {
    digest: Digest,
    other: Option<Digest>,
}

/// Why an image's objects cannot be made known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdded {
    #[error(transparent)]
    Taken(#[from] InodeTaken),
    #[error("what an image at rest names cannot be read")]
    Names(#[from] io::Error),
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    images: RwLock<Vec<Image>>,
    /// Held while an image is compared with all others: one at a time, or two would miss each other.
    adding: Mutex<()>,
    /// How many images containers read that are not known yet.
    awaited: watch::Sender<usize>,
}

/// An image of an earlier process that is still to be made known: until this is dropped who asks for an unknown object waits.
#[derive(Debug)]
pub(crate) struct Awaited {
    registry: Arc<Registry>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.registry.awaited.send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[derive(Clone, Debug)]
struct Image {
    manifest: String,
    objects: Objects,
}

/// Where it stands which objects an image has.
#[derive(Clone, Debug)]
enum Objects {
    InMemory(Arc<Map>),
    AtRest(Arc<Names>),
}

impl Registry {
    /// Makes the objects of an image known; again for the same image: nothing changes. Blocking.
    pub(crate) fn add(&self, manifest: &str, map: Arc<Map>) -> Result<(), NotAdded> {
        let _turn = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let images = self.read().clone();
        if images.iter().any(|image| image.manifest == manifest) {
            return Ok(());
        }
        check_alone(&map)?;
        for image in images {
            match image.objects {
                Objects::InMemory(other) => {
                    check_beside(&map, other.objects.iter().map(|place| Ok(place.digest)))?
                }
                Objects::AtRest(names) => check_beside(&map, names.iter().map(|name| Ok(name?.digest)))?,
            }
        }
        self.write().push(Image { manifest: manifest.to_owned(), objects: Objects::InMemory(map) });
        self.awaited.send_modify(|_| ());
        Ok(())
    }

    pub(crate) fn await_image(self: &Arc<Self>) -> Awaited {
        self.awaited.send_modify(|count| *count += 1);
        Awaited { registry: self.clone() }
    }

    pub(crate) fn awaits(&self) -> bool {
        *self.awaited.borrow() > 0
    }

    /// Looks again and again until something is found, or no image is awaited any more.
    pub(crate) async fn found<T>(&self, look: impl Fn() -> Option<T>) -> Option<T> {
        let mut awaited = self.awaited.subscribe();
        loop {
            let last = *awaited.borrow_and_update() == 0;
            let found = look();
            // The sender is here.
            if found.is_some() || last || awaited.changed().await.is_err() {
                return found;
            }
        }
    }

    /// The map of an image that is not at rest.
    pub(crate) fn in_memory(&self, manifest: &str) -> Option<Arc<Map>> {
        self.read().iter().find_map(|image| match &image.objects {
            Objects::InMemory(map) if image.manifest == manifest => Some(map.clone()),
            _ => None,
        })
    }

    /// What an image at rest names.
    pub(crate) fn at_rest(&self, manifest: &str) -> Option<Arc<Names>> {
        self.read().iter().find_map(|image| match &image.objects {
            Objects::AtRest(names) if image.manifest == manifest => Some(names.clone()),
            _ => None,
        })
    }

    /// Puts the names of an image's objects in place of its map.
    pub(crate) fn rest(&self, manifest: &str, names: Names) {
        if let Some(image) = self.write().iter_mut().find(|image| image.manifest == manifest) {
            image.objects = Objects::AtRest(Arc::new(names));
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
        let mut resting = Vec::new();
        for image in self.read().iter() {
            match &image.objects {
                Objects::InMemory(map) => {
                    let at = map.objects.partition_point(|place| inode(&place.digest) < number);
                    let place = map.objects.get(at).filter(|place| inode(&place.digest) == number);
                    if let Some(place) = place {
                        return Some(Known {
                            digest: place.digest,
                            len: place.len,
                            data_len: map.data_len(place),
                        });
                    }
                }
                Objects::AtRest(names) => resting.push(names.clone()),
            }
        }
        resting.iter().find_map(|names| match names.at_or_after(&first_of(number)) {
            Ok(name) => {
                let Name { digest, len, data_len } = name.filter(|name| inode(&name.digest) == number)?;
                Some(Known { digest, len, data_len })
            }
            Err(error) => {
                tracing::warn!(%error, "what an image at rest names cannot be read");
                None
            }
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

/// The lowest digest of an inode number.
fn first_of(number: u64) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Digest::from_bytes(bytes)
}

fn check_alone(map: &Map) -> Result<(), InodeTaken> {
    if let Some(first) = map.objects.first().filter(|first| inode(&first.digest) < FIRST_OBJECT) {
        return Err(InodeTaken { digest: first.digest, other: None });
    }
    map.objects.windows(2).try_for_each(|pair| check_pair(&pair[0].digest, &pair[1].digest))
}

/// Walks both sorted lists at once.
fn check_beside(one: &Map, others: impl Iterator<Item = io::Result<Digest>>) -> Result<(), NotAdded> {
    let mut own = one.objects.iter().map(|place| place.digest).peekable();
    for other in others {
        let other = other?;
        while own.next_if(|digest| inode(digest) < inode(&other)).is_some() {}
        match own.peek() {
            Some(digest) => check_pair(digest, &other)?,
            None => break,
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
    use image::record::ObjectPlace;

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
        Arc::new(Map { objects, ..Map::default() })
    }

    #[test]
    fn finds_by_name_and_by_inode_while_an_image_names_it() {
        let registry = Registry::default();
        let (shared, own) = (digest(5000, 1), digest(6000, 2));
        registry.add("one", map(&[shared])).unwrap();
        registry.add("two", map(&[shared, own])).unwrap();
        let name = own.to_string();
        assert_eq!(registry.by_name(0, OsStr::new(&name[2..])).map(|known| known.digest), Some(own));
        assert_eq!(registry.by_inode(6000), Some(Known { digest: own, len: 7, data_len: 7 }));
        assert_eq!(registry.by_inode(5999), None);
        assert_eq!(registry.by_name(1, OsStr::new(&name[2..])), None);
        assert_eq!(registry.by_name(0, OsStr::new("..")), None);
        let two = registry.in_memory("two").unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        registry.rest("two", crate::objects::Objects::open(folder.path()).unwrap().names(&two).unwrap());
        registry.remove("one");
        assert!(registry.by_inode(5000).is_some());
        assert_eq!(registry.by_inode(6000), Some(Known { digest: own, len: 7, data_len: 7 }));
        assert_eq!((registry.by_inode(5999), registry.by_inode(6001)), (None, None));
        // One at rest is compared with like others.
        assert!(registry.add("three", map(&[digest(6000, 3)])).is_err());
        registry.add("three", map(&[own, digest(6001, 3)])).unwrap();
        registry.remove("three");
        registry.remove("two");
        assert!(registry.by_inode(5000).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unknown_is_waited_for_while_images_are_awaited() {
        let registry = Arc::new(Registry::default());
        let look = |number: u64| {
            let registry = registry.clone();
            tokio::spawn(async move { registry.found(|| registry.by_inode(number)).await })
        };
        assert_eq!(look(5000).await.unwrap(), None);
        let (one, other) = (registry.await_image(), registry.await_image());
        let (first, second, never) = (look(5000), look(6000), look(7000));
        tokio::time::sleep(std::time::Duration::from_secs(100)).await;
        assert!(registry.awaits() && !first.is_finished() && !never.is_finished());
        registry.add("one", map(&[digest(5000, 1)])).unwrap();
        drop(one);
        assert!(first.await.unwrap().is_some());
        assert!(!second.is_finished() && !never.is_finished());
        registry.add("other", map(&[digest(6000, 1)])).unwrap();
        drop(other);
        assert!(second.await.unwrap().is_some());
        assert_eq!(never.await.unwrap(), None);
    }

    #[test]
    fn refuses_two_objects_with_one_inode() {
        let registry = Registry::default();
        let (first, second) = (digest(5000, 1), digest(5000, 2));
        let both = InodeTaken { digest: first, other: Some(second) };
        let taken = |added| match added {
            Err(NotAdded::Taken(taken)) => taken,
            other => panic!("{other:?}"),
        };
        assert_eq!(taken(registry.add("alone", map(&[second, first]))), both);
        registry.add("one", map(&[digest(4000, 1), first])).unwrap();
        let beside = InodeTaken { digest: second, other: Some(first) };
        assert_eq!(taken(registry.add("two", map(&[second]))), beside);
        assert!(registry.add("low", map(&[digest(257, 1)])).is_err());
        // A refused image leaves nothing behind.
        registry.remove("one");
        assert_eq!(registry.by_inode(5000), None);
    }
}
