//! Trees, maps, image records and grants on the node's disk.
//!
//! Trees and maps are kept as plain bytes under their digest; a tree is mounted from here. A record
//! is kept as it was signed, so that an image can be mounted while the mesh is away; a grant likewise, so
//! that what is missing of it can be fetched after a restart. Whoever loads one checks it again: the disk is not trusted.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::PathBuf;

use image::{Digest, Map};

use super::{Incoming, Objects, hashing};

impl Objects {
    pub fn tree_path(&self, tree: &Digest) -> PathBuf {
        self.root.join("trees").join(format!("{tree}.erofs"))
    }

    /// Whether the tree is here; its bytes are not looked at.
    pub fn has_tree(&self, tree: &Digest) -> bool {
        self.tree_path(tree).is_file()
    }

    pub fn has_map(&self, map: &Digest) -> bool {
        self.map_path(map).is_file()
    }

    /// Whether the tree is here and its bytes are still what its name says.
    pub fn has_good_tree(&self, tree: &Digest) -> bool {
        hashing::plain(&self.tree_path(tree)).is_ok_and(|(digest, _)| digest == *tree)
    }

    /// Keeps a tree of which all bytes were checked.
    pub fn keep_tree(&self, tree: &Digest, incoming: Incoming) -> io::Result<()> {
        self.keep(incoming, &self.tree_path(tree))
    }

    /// The map; `None` when it is not here, or not what its name says.
    pub fn map(&self, map: &Digest) -> io::Result<Option<Map>> {
        let file = match File::open(self.map_path(map)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut reader = Hashing { file, hasher: blake3::Hasher::new() };
        let decoded = Map::read(&mut reader);
        io::copy(&mut reader, &mut io::sink())?;
        // Only now is it known whether those were the bytes of the map at all.
        Ok(decoded.ok().filter(|_| Digest::from(reader.hasher.finalize()) == *map))
    }

    /// Keeps a map of which all bytes were checked.
    pub fn keep_map(&self, map: &Digest, incoming: Incoming) -> io::Result<()> {
        self.keep(incoming, &self.map_path(map))
    }

    /// The record of a manifest (64 hexadecimal digits), as it was put.
    pub fn record(&self, manifest_hex: &str) -> io::Result<Option<Vec<u8>>> {
        read(self.record_path(manifest_hex)?)
    }

    /// On the disk when this returns: containerd does not pull again what it knows, and whoever has lost a private image's record
    /// or its grant has no credential to ask for it again.
    pub fn put_record(&self, manifest_hex: &str, signed: &[u8]) -> io::Result<()> {
        self.place_for_good(&self.record_path(manifest_hex)?, signed)
    }

    /// The manifests whose records are here.
    pub fn records(&self) -> io::Result<Vec<String>> {
        let mut manifests = Vec::new();
        for entry in fs::read_dir(self.root.join("records"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            match self.record_path(&name) {
                Ok(_) => manifests.push(name),
                Err(_) => tracing::warn!(name, "passed over what is no record among the records"),
            }
        }
        manifests.sort();
        Ok(manifests)
    }

    pub fn remove_record(&self, manifest_hex: &str) -> io::Result<u64> {
        self.unlink(&self.record_path(manifest_hex)?)
    }

    /// The grant for the image of a manifest, as it was put.
    pub fn grant(&self, manifest_hex: &str) -> io::Result<Option<Vec<u8>>> {
        read(self.named("grants", manifest_hex)?)
    }

    pub fn put_grant(&self, manifest_hex: &str, signed: &[u8]) -> io::Result<()> {
        self.place_for_good(&self.named("grants", manifest_hex)?, signed)
    }

    pub fn remove_grant(&self, manifest_hex: &str) -> io::Result<u64> {
        self.unlink(&self.named("grants", manifest_hex)?)
    }

    /// Takes a tree and a map off the disk; the tree must not be mounted.
    pub fn remove_indexes(&self, tree: &Digest, map: &Digest) -> io::Result<u64> {
        Ok(self.remove_tree(tree)? + self.remove_map(map)?)
    }

    pub fn remove_tree(&self, tree: &Digest) -> io::Result<u64> {
        self.unlink(&self.tree_path(tree))
    }

    pub fn remove_map(&self, map: &Digest) -> io::Result<u64> {
        self.unlink(&self.map_path(map))
    }

    /// All trees and maps that are here, each with whether it is a tree.
    pub fn indexes(&self) -> io::Result<Vec<(Digest, bool)>> {
        let mut indexes = Vec::new();
        for (folder, is_tree) in [("trees", true), ("maps", false)] {
            for entry in fs::read_dir(self.root.join(folder))? {
                let name = entry?.file_name();
                let digest = name.to_str().and_then(|name| match is_tree {
                    true => name.strip_suffix(".erofs"),
                    false => Some(name),
                });
                if let Some(digest) = digest.and_then(|digest| digest.parse().ok()) {
                    indexes.push((digest, is_tree));
                }
            }
        }
        Ok(indexes)
    }

    pub(super) fn map_path(&self, map: &Digest) -> PathBuf {
        self.root.join("maps").join(map.to_string())
    }

    fn record_path(&self, manifest_hex: &str) -> io::Result<PathBuf> {
        self.named("records", manifest_hex)
    }

    fn named(&self, folder: &str, manifest_hex: &str) -> io::Result<PathBuf> {
        // The name came from outside: only a digest may become part of a path.
        if manifest_hex.len() != 64 || !manifest_hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("not a manifest digest: {manifest_hex:?}");
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(self.root.join(folder).join(manifest_hex))
    }
}

/// Hashes what is read.
struct Hashing {
    file: File,
    hasher: blake3::Hasher,
}

impl Read for Hashing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(into)?;
        self.hasher.update(&into[..read]);
        Ok(read)
    }
}

fn read(path: PathBuf) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
