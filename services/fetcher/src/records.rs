//! Image and layer records as the store keeps them: signed, and believed only when the signature,
//! the name and the rules of the type all hold. To who needs what a record says, one that is not believed is as good as absent;
//! who deletes what no record names must know of it ([`Looked`]).

use bytes::Bytes;
use image::encoding::EncodingError;
use image::{ImageRecord, LayerRecord};
use prost::Message;
use proto::signed::{Domain, VerifyError};
use proto::{LayerSource, Signed, StoredLayer};
use store::{ProjectStore, StoreError};

use crate::key::Keys;

/// Reads and writes records. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    keys: Keys,
}

/// A record, and the form in which others can verify it.
#[derive(Clone, Debug)]
pub(crate) struct SignedImage {
    pub(crate) record: ImageRecord,
    pub(crate) signed: Signed,
}

/// A layer's record, and where the layer was read.
#[derive(Clone, Debug)]
pub(crate) struct KnownLayer {
    pub(crate) record: LayerRecord,
    pub(crate) sources: Vec<LayerSource>,
}

/// Places that a layer is known from; of more the oldest are forgotten, and the layer is read there once more.
const SOURCES_MAX: usize = 64;

/// What stands in the store under a record's name.
#[derive(Debug)]
pub(crate) enum Looked<T> {
    Absent,
    Believed(T),
    Refused(Refusal),
}

/// Why a record does not count.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Signature(#[from] VerifyError),
    #[error("{0:#}")]
    Content(anyhow::Error),
    #[error("it cannot be read: {0}")]
    Store(StoreError),
}

impl Refusal {
    /// Whether an earlier version of sluice wrote it, in a form that this one reads no more.
    pub(crate) fn is_outdated(&self) -> bool {
        let Refusal::Content(error) = self else { return false };
        matches!(error.downcast_ref(), Some(EncodingError::Version { found, known, .. }) if found < known)
    }
}

impl Records {
    pub(crate) fn new(keys: Keys) -> Records {
        Records { keys }
    }

    pub(crate) async fn image(
        &self,
        project: &ProjectStore,
        manifest: &str,
    ) -> Result<Option<SignedImage>, StoreError> {
        believed(self.look_up_image(project, manifest).await, project, manifest)
    }

    pub(crate) async fn look_up_image(&self, project: &ProjectStore, manifest: &str) -> Looked<SignedImage> {
        self.look_at_image(project, manifest, project.image(manifest).await)
    }

    /// The record of an image that somebody removed, as far as it is believed.
    pub(crate) async fn removed_image(
        &self,
        project: &ProjectStore,
        manifest: &str,
    ) -> Result<Option<SignedImage>, StoreError> {
        let looked = self.look_at_image(project, manifest, project.removed(manifest).await);
        believed(looked, project, manifest)
    }

    fn look_at_image(
        &self,
        project: &ProjectStore,
        manifest: &str,
        read: Result<Bytes, StoreError>,
    ) -> Looked<SignedImage> {
        match read {
            Ok(stored) => self.open_image(project, manifest, &stored).into(),
            Err(error) => Looked::of_error(error),
        }
    }

    /// Signs and stores a record; from then on the image exists.
    pub(crate) async fn put_image(
        &self,
        project: &ProjectStore,
        record: ImageRecord,
    ) -> Result<SignedImage, StoreError> {
        let payload =
            record.encode().map_err(|error| unencodable("image record", &record.manifest_digest, error))?;
        let signed = self.keys.sign(Domain::ImageRecord, payload);
        project.put_image(&record.manifest_digest, signed.encode_to_vec().into()).await?;
        Ok(SignedImage { record, signed })
    }

    /// The record that was read as `read`: for who reads several ahead, and opens one at a time.
    pub(crate) async fn layer_of(
        &self,
        project: &ProjectStore,
        diff_id: &str,
        read: Result<Bytes, StoreError>,
    ) -> Result<Option<KnownLayer>, StoreError> {
        believed(self.look_at_layer(diff_id, read).await, project, diff_id)
    }

    pub(crate) async fn look_up_layer(&self, project: &ProjectStore, diff_id: &str) -> Looked<KnownLayer> {
        self.look_at_layer(diff_id, project.layer(diff_id).await).await
    }

    async fn look_at_layer(&self, diff_id: &str, read: Result<Bytes, StoreError>) -> Looked<KnownLayer> {
        let stored = match read {
            Ok(stored) => stored,
            Err(error) => return Looked::of_error(error),
        };
        let (records, expected) = (self.clone(), diff_id.to_owned());
        // A large layer's record takes a tenth of a second to decode.
        let opened = tokio::task::spawn_blocking(move || records.open_layer(&expected, &stored)).await;
        opened.unwrap_or_else(|error| Err(Refusal::Content(error.into()))).into()
    }

    /// Where a layer was read; nowhere when there is no record that says it. Less work than reading the record itself.
    pub(crate) async fn layer_sources(
        &self,
        project: &ProjectStore,
        diff_id: &str,
    ) -> Result<Vec<LayerSource>, StoreError> {
        let stored = match project.layer(diff_id).await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            stored => stored?,
        };
        let stored = Signed::decode(stored).ok();
        let payload = stored.as_ref().and_then(|signed| self.keys.verify(Domain::StoredLayer, signed).ok());
        let layer = payload.and_then(|payload| StoredLayer::decode(payload).ok());
        Ok(layer.map(|layer| layer.sources).unwrap_or_default())
    }

    /// Stores the record of a layer that was just read; `sources` is where, besides what was known, the newest last.
    pub(crate) async fn put_layer(
        &self,
        project: &ProjectStore,
        record: &LayerRecord,
        mut sources: Vec<LayerSource>,
    ) -> Result<(), StoreError> {
        let diff_id = diff_id(record);
        let record = record.encode().map_err(|error| unencodable("layer record", &diff_id, error))?;
        sources.drain(..sources.len().saturating_sub(SOURCES_MAX));
        let signed = self.keys.sign(Domain::StoredLayer, StoredLayer { record, sources }.encode_to_vec());
        project.put_layer(&diff_id, signed.encode_to_vec().into()).await
    }

    fn open_image(
        &self,
        project: &ProjectStore,
        manifest: &str,
        stored: &Bytes,
    ) -> Result<SignedImage, Refusal> {
        let signed = Signed::decode(stored.clone()).map_err(not_a_record)?;
        let payload = self.keys.verify(Domain::ImageRecord, &signed)?;
        let record = ImageRecord::decode(payload).map_err(not_a_record)?;
        let (found, of) = (&record.manifest_digest, &record.project);
        if found != manifest {
            return Err(not_a_record(anyhow::anyhow!("it is the record of another image")));
        }
        // Whose it is, or what else it names, is nothing for who asks.
        if of != project.name() {
            return Err(not_a_record(anyhow::anyhow!("it belongs to another project")));
        }
        Ok(SignedImage { record, signed })
    }

    fn open_layer(&self, expected: &str, stored: &Bytes) -> Result<KnownLayer, Refusal> {
        let signed = Signed::decode(stored.clone()).map_err(not_a_record)?;
        let stored = match self.keys.verify(Domain::StoredLayer, &signed) {
            Ok(payload) => StoredLayer::decode(payload).map_err(not_a_record)?,
            // Of an earlier version, which did not say where the layer was read.
            Err(_) => {
                let record = self.keys.verify(Domain::LayerRecord, &signed)?.to_vec();
                StoredLayer { record, sources: Vec::new() }
            }
        };
        let record = LayerRecord::decode(&stored.record).map_err(not_a_record)?;
        match diff_id(&record) {
            found if found == expected => Ok(KnownLayer { record, sources: stored.sources }),
            found => Err(not_a_record(anyhow::anyhow!("it is the record of {found}"))),
        }
    }
}

impl<T> Looked<T> {
    fn of_error(error: StoreError) -> Looked<T> {
        match error.is_not_found() {
            true => Looked::Absent,
            false => Looked::Refused(Refusal::Store(error)),
        }
    }
}

impl<T> From<Result<T, Refusal>> for Looked<T> {
    fn from(opened: Result<T, Refusal>) -> Looked<T> {
        opened.map_or_else(Looked::Refused, Looked::Believed)
    }
}

fn believed<T>(looked: Looked<T>, project: &ProjectStore, digest: &str) -> Result<Option<T>, StoreError> {
    match looked {
        Looked::Absent => Ok(None),
        Looked::Believed(record) => Ok(Some(record)),
        Looked::Refused(Refusal::Store(error)) => Err(error),
        Looked::Refused(refusal) => {
            tracing::warn!(project = project.name(), digest, error = %refusal, "a record is not believed");
            Ok(None)
        }
    }
}

fn not_a_record(error: impl Into<anyhow::Error>) -> Refusal {
    Refusal::Content(error.into())
}

fn diff_id(record: &LayerRecord) -> String {
    format!("sha256:{}", hex::encode(record.diff_id))
}

fn unencodable(what: &'static str, name: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Other { operation: "encode", object: format!("{what} {name}"), reason: error.to_string() }
}
