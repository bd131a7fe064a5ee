//! Room on the node's disk for what must be there before anything of an image can be read: its tree, map and record.
//!
//! Looked at before an image is imported, which may take minutes for nothing, and again once its sizes are known. What is on the
//! disk already needs no room.

use image::ImageRecord;
use image::record::IndexRef;
use proto::{Refusal, ResolveRequest};
use rustix::fs::StatVfs;
use tonic::Status;

use super::{Images, disk_status};

/// What is to be free before an image is asked for whose sizes nobody knows yet: most trees and maps are smaller together.
const UNKNOWN_BYTES: u64 = 4 * 1024 * 1024;
/// Beside tree and map: record, grant and name, and the folders that they are entered in.
const BESIDE_BYTES: u64 = 64 * 1024;
/// Tree, map, record, grant, name, and what is written before it is renamed to them.
const FILES: u64 = 16;

impl Images {
    /// For an image of which only the name is known.
    pub(super) async fn check_space_unknown(&self, request: &ResolveRequest) -> Result<(), Status> {
        let digest = request.reference.rsplit_once('@').map(|(_, digest)| digest);
        if request.layers == 0 && digest.is_some_and(|digest| self.is_here(digest)) {
            return Ok(());
        }
        self.check_space(&request.reference, UNKNOWN_BYTES).await
    }

    /// For what is not here yet of an image.
    pub(super) async fn check_space_of(&self, reference: &str, record: &ImageRecord) -> Result<(), Status> {
        let (tree, map) = (record.tree, record.map);
        let missing = self.blocking(move |node| {
            let absent = |here: bool, index: IndexRef| if here { 0 } else { index.plain_len };
            Ok(absent(node.objects.has_tree(&tree.digest), tree)
                + absent(node.objects.has_map(&map.digest), map))
        });
        match missing.await? {
            0 => Ok(()),
            missing => self.check_space(reference, missing.saturating_add(BESIDE_BYTES)).await,
        }
    }

    async fn check_space(&self, reference: &str, needed: u64) -> Result<(), Status> {
        let found = self.blocking(|node| {
            let found = rustix::fs::statvfs(&node.config.state);
            found.map_err(|errno| disk_status("ask how much room the disk has", &errno.into()))
        });
        let Some(lacking) = lacking(&found.await?, needed) else { return Ok(()) };
        let state = self.node.config.state.display();
        let message =
            format!("no room on the disk of {state} for {reference}: {lacking}; {}", self.what_could_go());
        Err(Refusal::NoRoom.status(message))
    }

    /// Images that nothing uses, for who has to make room.
    fn what_could_go(&self) -> String {
        let unused = |(manifest, image): &(String, super::Present)| {
            image.targets.is_empty() && !self.node.is_claimed(manifest)
        };
        let unused: Vec<_> = self.list().into_iter().filter(unused).collect();
        if unused.is_empty() {
            return "no image here could be evicted: all are in use or pulled by the container runtime"
                .to_owned();
        }
        let local = |manifest: &str| self.progress_of(manifest).map_or(0, |progress| progress.bytes_local);
        let bytes = unused.iter().map(|(manifest, _)| local(manifest)).sum();
        format!(
            "images that nothing uses ({}) take up to {}: `sluice evict IMAGE` makes room",
            unused.len(),
            bytesize::ByteSize::b(bytes)
        )
    }
}

/// What the file system has too little of. This process is root, so blocks that are reserved count as free.
fn lacking(found: &StatVfs, needed: u64) -> Option<String> {
    let free = found.f_bfree.saturating_mul(found.f_frsize);
    if free < needed {
        let (needed, free) = (bytesize::ByteSize::b(needed), bytesize::ByteSize::b(free));
        return Some(format!("its tree and map need {needed}, and {free} are free"));
    }
    // A file system that makes inodes as they are needed says that it has none.
    if found.f_files > 0 && found.f_ffree < FILES {
        return Some(format!("it needs {FILES} inodes, and {} are free", found.f_ffree));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_inodes_are_counted_where_there_are_any() {
        let mut found = rustix::fs::statvfs("/").unwrap();
        (found.f_frsize, found.f_bfree, found.f_files, found.f_ffree) = (4096, 2, 100, FILES);
        assert_eq!(lacking(&found, 8192), None);
        assert_eq!(lacking(&found, 9000).unwrap(), "its tree and map need 8.8 KiB, and 8.0 KiB are free");
        found.f_ffree = 3;
        assert_eq!(lacking(&found, 0).unwrap(), "it needs 16 inodes, and 3 are free");
        found.f_files = 0;
        assert_eq!(lacking(&found, 0), None);
    }
}
