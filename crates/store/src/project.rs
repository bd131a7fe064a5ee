//! What a store holds for one project: names, and the operations on them.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use image::Digest;
use names::{ManifestDigest, Project};
use object_store::path::Path;
use object_store::{Error as Cause, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::StoreError;

/// The two indexes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    Tree,
    Map,
}

/// What kinds of object a project has: one folder each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Chunk,
    Tree,
    Map,
    Layer,
    Image,
    Source,
    Profile,
    /// Which image of a repository was started.
    Repository,
    /// The record of an image that somebody removed: what only it names goes because somebody said so.
    Removed,
    /// Imports that ended without an answer.
    Attempts,
    /// That an import runs.
    Importing,
    /// That a collection runs.
    Collecting,
}

impl Kind {
    /// Those that hold something; the others only say what is going on.
    pub const ALL: [Kind; 10] = [
        Kind::Chunk,
        Kind::Tree,
        Kind::Map,
        Kind::Layer,
        Kind::Image,
        Kind::Source,
        Kind::Profile,
        Kind::Repository,
        Kind::Removed,
        Kind::Attempts,
    ];

    fn folder(self) -> &'static str {
        match self {
            Kind::Chunk => "chunks",
            Kind::Tree => "trees",
            Kind::Map => "maps",
            Kind::Layer => "layers",
            Kind::Image => "images",
            Kind::Source => "sources",
            Kind::Profile => "profiles",
            Kind::Repository => "repositories",
            Kind::Removed => "removed",
            Kind::Attempts => "attempts",
            Kind::Importing => "importing",
            Kind::Collecting => "collecting",
        }
    }
}

impl From<Index> for Kind {
    fn from(index: Index) -> Kind {
        match index {
            Index::Tree => Kind::Tree,
            Index::Map => Kind::Map,
        }
    }
}

/// What a put-if-absent found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Written,
    Present,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub kind: Kind,
    /// The 64 hexadecimal digits that name it within its kind.
    pub hex: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// One project's part of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProjectStore {
    objects: Arc<dyn ObjectStore>,
    project: Arc<str>,
}

/// Content named by its digest.
impl ProjectStore {
    /// Stores a chunk's frame, unless the chunk is there.
    pub async fn put_chunk(&self, digest: Digest, stored: Bytes) -> Result<Put, StoreError> {
        self.put_absent("store chunk", &self.content(Kind::Chunk, &digest), stored).await
    }

    /// Stores a chunk's frame over what is there: for a chunk that was found corrupt.
    pub async fn replace_chunk(&self, digest: Digest, stored: Bytes) -> Result<(), StoreError> {
        self.overwrite("replace chunk", &self.content(Kind::Chunk, &digest), stored).await
    }

    pub async fn delete_chunk(&self, digest: Digest) -> Result<(), StoreError> {
        self.delete_at("delete chunk", &self.content(Kind::Chunk, &digest)).await
    }

    /// The stored bytes of a chunk, not verified.
    pub async fn chunk(&self, digest: Digest) -> Result<Bytes, StoreError> {
        self.get("read chunk", &self.content(Kind::Chunk, &digest)).await
    }

    pub async fn has_chunk(&self, digest: Digest) -> Result<bool, StoreError> {
        Ok(self.chunk_len(digest).await?.is_some())
    }

    /// The stored length of a chunk, if it is there.
    pub async fn chunk_len(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        self.len("look up chunk", &self.content(Kind::Chunk, &digest)).await
    }

    /// Stores a tree or a map, unless it is there.
    pub async fn put_index(&self, index: Index, digest: Digest, stored: Bytes) -> Result<Put, StoreError> {
        self.put_absent("store index", &self.content(index.into(), &digest), stored).await
    }

    /// Stores a tree or a map over what is there: for one that was found corrupt.
    pub async fn replace_index(&self, index: Index, digest: Digest, stored: Bytes) -> Result<(), StoreError> {
        self.overwrite("replace index", &self.content(index.into(), &digest), stored).await
    }

    /// The stored bytes of a tree or a map, not verified.
    pub async fn index(&self, index: Index, digest: Digest) -> Result<Bytes, StoreError> {
        self.get("read index", &self.content(index.into(), &digest)).await
    }

    /// The same as they come.
    pub async fn index_stream(
        &self,
        index: Index,
        digest: Digest,
    ) -> Result<impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static, StoreError> {
        let path = self.content(index.into(), &digest);
        let failed = move |path: &Path, cause: &Cause| StoreError::new("read index", path.as_ref(), cause);
        let found = self.objects.get(&path).await.map_err(|cause| failed(&path, &cause))?;
        Ok(found.into_stream().map_err(move |cause| failed(&path, &cause)))
    }

    pub async fn has_index(&self, index: Index, digest: Digest) -> Result<bool, StoreError> {
        Ok(self.len("look up index", &self.content(index.into(), &digest)).await?.is_some())
    }
}

/// Records, named by the digest of what they describe (`sha256:<hex>`).
impl ProjectStore {
    pub async fn put_layer(&self, diff_id: &str, record: Bytes) -> Result<(), StoreError> {
        self.overwrite("store layer record", &self.record(Kind::Layer, diff_id)?, record).await
    }

    pub async fn layer(&self, diff_id: &str) -> Result<Bytes, StoreError> {
        self.get("read layer record", &self.record(Kind::Layer, diff_id)?).await
    }

    pub async fn has_layer(&self, diff_id: &str) -> Result<bool, StoreError> {
        Ok(self.len("look up layer record", &self.record(Kind::Layer, diff_id)?).await?.is_some())
    }

    pub async fn put_image(&self, manifest: &str, signed: Bytes) -> Result<(), StoreError> {
        self.overwrite("store image record", &self.record(Kind::Image, manifest)?, signed).await
    }

    pub async fn image(&self, manifest: &str) -> Result<Bytes, StoreError> {
        self.get("read image record", &self.record(Kind::Image, manifest)?).await
    }

    /// The manifest digests of all images that have a record.
    pub async fn images(&self) -> Result<Vec<String>, StoreError> {
        self.list(Kind::Image).map_ok(|stored| format!("sha256:{}", stored.hex)).try_collect().await
    }

    pub async fn delete_image(&self, manifest: &str) -> Result<(), StoreError> {
        self.delete_at("delete image record", &self.record(Kind::Image, manifest)?).await
    }

    pub async fn delete_layer(&self, diff_id: &str) -> Result<(), StoreError> {
        self.delete_at("delete layer record", &self.record(Kind::Layer, diff_id)?).await
    }

    /// Notes that an image was removed; `signed` is its record as it was stored.
    pub async fn put_removed(&self, manifest: &str, signed: Bytes) -> Result<(), StoreError> {
        self.overwrite("note removed image", &self.record(Kind::Removed, manifest)?, signed).await
    }

    pub async fn removed(&self, manifest: &str) -> Result<Bytes, StoreError> {
        self.get("read removed image record", &self.record(Kind::Removed, manifest)?).await
    }

    pub async fn put_source(&self, manifest: &str, source: Bytes) -> Result<(), StoreError> {
        self.overwrite("store image source", &self.record(Kind::Source, manifest)?, source).await
    }

    pub async fn source(&self, manifest: &str) -> Result<Bytes, StoreError> {
        self.get("read image source", &self.record(Kind::Source, manifest)?).await
    }

    pub async fn put_profile(&self, manifest: &str, profile: Bytes) -> Result<(), StoreError> {
        self.overwrite("store profile", &self.record(Kind::Profile, manifest)?, profile).await
    }

    pub async fn profile(&self, manifest: &str) -> Result<Bytes, StoreError> {
        self.get("read profile", &self.record(Kind::Profile, manifest)?).await
    }
}

/// Attempts to import an image, by its manifest.
impl ProjectStore {
    pub async fn put_attempts(&self, manifest: &str, notes: Bytes) -> Result<(), StoreError> {
        self.overwrite("note import attempt", &self.record(Kind::Attempts, manifest)?, notes).await
    }

    pub async fn attempts(&self, manifest: &str) -> Result<Bytes, StoreError> {
        self.get("read import attempts", &self.record(Kind::Attempts, manifest)?).await
    }

    pub async fn delete_attempts(&self, manifest: &str) -> Result<(), StoreError> {
        self.delete_at("clear import attempts", &self.record(Kind::Attempts, manifest)?).await
    }
}

/// What repositories are known for; `hex` is any name of 64 hexadecimal digits.
impl ProjectStore {
    pub async fn put_repository(&self, hex: &str, manifest: Bytes) -> Result<(), StoreError> {
        let path = self.record(Kind::Repository, &format!("sha256:{hex}"))?;
        self.overwrite("store repository", &path, manifest).await
    }

    pub async fn repository(&self, hex: &str) -> Result<Bytes, StoreError> {
        self.get("read repository", &self.record(Kind::Repository, &format!("sha256:{hex}"))?).await
    }
}

/// Collection.
impl ProjectStore {
    /// Writes an object that says by its presence and its age that something goes on; `hex` is any
    /// name of 64 hexadecimal digits.
    pub async fn put_marker(&self, kind: Kind, hex: &str) -> Result<(), StoreError> {
        self.overwrite("mark", &self.record(kind, &format!("sha256:{hex}"))?, Bytes::from_static(b"1")).await
    }

    pub async fn delete_marker(&self, kind: Kind, hex: &str) -> Result<(), StoreError> {
        self.delete_at("unmark", &self.record(kind, &format!("sha256:{hex}"))?).await
    }

    /// Everything of one kind, in no order. What does not look like ours is left out.
    pub fn list(&self, kind: Kind) -> impl Stream<Item = Result<Stored, StoreError>> + Send + 'static {
        self.list_all(kind).try_filter_map(|listed| std::future::ready(Ok(listed.ok())))
    }

    /// The same with what does not look like ours, by its path in the store.
    pub fn list_all(
        &self,
        kind: Kind,
    ) -> impl Stream<Item = Result<Result<Stored, String>, StoreError>> + Send + 'static {
        let prefix = Path::from_iter([&*self.project, kind.folder()]);
        let object = prefix.to_string();
        self.objects
            .list(Some(&prefix))
            .map_err(move |cause| StoreError::new("list", &object, &cause))
            .map_ok(move |meta| {
                let hex: String = meta
                    .location
                    .prefix_match(&prefix)
                    .into_iter()
                    .flatten()
                    .map(|part| part.as_ref().to_owned())
                    .collect();
                let modified = SystemTime::from(meta.last_modified);
                match is_hex(&hex) {
                    true => Ok(Stored { kind, hex, size: meta.size, modified }),
                    false => Err(meta.location.to_string()),
                }
            })
    }

    /// Deletes what a listing showed.
    pub async fn delete(&self, kind: Kind, hex: &str) -> Result<(), StoreError> {
        if !is_hex(hex) {
            return Err(StoreError::BadName { what: "name of 64 hexadecimal digits", name: hex.to_owned() });
        }
        let (head, rest) = hex.split_at(2);
        let path = match kind {
            Kind::Chunk | Kind::Tree | Kind::Map => self.path(kind).join(head).join(rest),
            _ => self.path(kind).join(hex),
        };
        self.delete_at("delete", &path).await
    }
}

impl ProjectStore {
    pub(crate) fn new(objects: Arc<dyn ObjectStore>, project: &str) -> Result<ProjectStore, StoreError> {
        let bad = |_| StoreError::BadName { what: "project", name: project.to_owned() };
        let project = Project::named(project).map_err(bad)?;
        Ok(ProjectStore { objects, project: project.as_str().into() })
    }

    /// The project's name.
    pub fn name(&self) -> &str {
        &self.project
    }

    fn path(&self, kind: Kind) -> Path {
        Path::from_iter([&*self.project, kind.folder()])
    }

    fn content(&self, kind: Kind, digest: &Digest) -> Path {
        let hex = digest.to_string();
        let (head, rest) = hex.split_at(2);
        self.path(kind).join(head).join(rest)
    }

    fn record(&self, kind: Kind, digest: &str) -> Result<Path, StoreError> {
        match digest.parse::<ManifestDigest>() {
            Ok(digest) => Ok(self.path(kind).join(digest.hex())),
            Err(_) => Err(StoreError::BadName { what: "sha256 digest", name: digest.to_owned() }),
        }
    }

    async fn get(&self, operation: &'static str, path: &Path) -> Result<Bytes, StoreError> {
        let read = async { self.objects.get(path).await?.bytes().await };
        read.await.map_err(|cause| StoreError::new(operation, path.as_ref(), &cause))
    }

    async fn len(&self, operation: &'static str, path: &Path) -> Result<Option<u64>, StoreError> {
        match self.objects.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Cause::NotFound { .. }) => Ok(None),
            Err(cause) => Err(StoreError::new(operation, path.as_ref(), &cause)),
        }
    }

    async fn put_absent(
        &self,
        operation: &'static str,
        path: &Path,
        stored: Bytes,
    ) -> Result<Put, StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(stored);
        match self.objects.put_opts(path, payload.clone(), options).await {
            Ok(_) => Ok(Put::Written),
            Err(Cause::AlreadyExists { .. } | Cause::Precondition { .. }) => Ok(Put::Present),
            // Without conditional writes two writers may both write: the same content, so no harm.
            Err(Cause::NotImplemented { .. } | Cause::NotSupported { .. }) => {
                if self.len(operation, path).await?.is_some() {
                    return Ok(Put::Present);
                }
                let put = self.objects.put(path, payload).await;
                put.map(|_| Put::Written).map_err(|cause| StoreError::new(operation, path.as_ref(), &cause))
            }
            Err(cause) => Err(StoreError::new(operation, path.as_ref(), &cause)),
        }
    }

    async fn overwrite(&self, operation: &'static str, path: &Path, stored: Bytes) -> Result<(), StoreError> {
        let put = self.objects.put(path, PutPayload::from(stored)).await;
        put.map(drop).map_err(|cause| StoreError::new(operation, path.as_ref(), &cause))
    }

    async fn delete_at(&self, operation: &'static str, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(Cause::NotFound { .. }) => Ok(()),
            Err(cause) => Err(StoreError::new(operation, path.as_ref(), &cause)),
        }
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
