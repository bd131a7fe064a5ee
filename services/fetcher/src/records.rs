//! Image and layer records as the store keeps them: signed, and believed only when the signature,
//! the name and the rules of the type all hold. One that is not believed is as good as absent.

use bytes::Bytes;
use image::{ImageRecord, LayerRecord};
use prost::Message;
use proto::Signed;
use proto::signed::Domain;
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

impl Records {
    pub(crate) fn new(keys: Keys) -> Records {
        Records { keys }
    }

    pub(crate) async fn image(
        &self,
        project: &ProjectStore,
        manifest: &str,
    ) -> Result<Option<SignedImage>, StoreError> {
        let Some(stored) = absent_is_none(project.image(manifest).await)? else { return Ok(None) };
        match self.open_image(project, manifest, &stored) {
            Ok(image) => Ok(Some(image)),
            Err(error) => {
                tracing::warn!(project = project.name(), manifest, %error, "an image record is not believed");
                Ok(None)
            }
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

    pub(crate) async fn layer(
        &self,
        project: &ProjectStore,
        diff_id: &str,
    ) -> Result<Option<LayerRecord>, StoreError> {
        let Some(stored) = absent_is_none(project.layer(diff_id).await)? else { return Ok(None) };
        let (records, expected) = (self.clone(), diff_id.to_owned());
        // A large layer's record takes a tenth of a second to decode.
        let opened = tokio::task::spawn_blocking(move || records.open_layer(&expected, &stored)).await;
        match opened.map_err(anyhow::Error::from).and_then(|opened| opened) {
            Ok(layer) => Ok(Some(layer)),
            Err(error) => {
                tracing::warn!(project = project.name(), diff_id, %error, "a layer record is not believed");
                Ok(None)
            }
        }
    }

    pub(crate) async fn put_layer(
        &self,
        project: &ProjectStore,
        record: &LayerRecord,
    ) -> Result<(), StoreError> {
        let diff_id = diff_id(record);
        let payload = record.encode().map_err(|error| unencodable("layer record", &diff_id, error))?;
        let signed = self.keys.sign(Domain::LayerRecord, payload);
        project.put_layer(&diff_id, signed.encode_to_vec().into()).await
    }

    fn open_image(
        &self,
        project: &ProjectStore,
        manifest: &str,
        stored: &Bytes,
    ) -> anyhow::Result<SignedImage> {
        let signed = Signed::decode(stored.clone())?;
        let record = ImageRecord::decode(self.keys.verify(Domain::ImageRecord, &signed)?)?;
        anyhow::ensure!(record.manifest_digest == manifest, "it is the record of {}", record.manifest_digest);
        anyhow::ensure!(record.project == project.name(), "it belongs to the project {}", record.project);
        Ok(SignedImage { record, signed })
    }

    fn open_layer(&self, expected: &str, stored: &Bytes) -> anyhow::Result<LayerRecord> {
        let signed = Signed::decode(stored.clone())?;
        let record = LayerRecord::decode(self.keys.verify(Domain::LayerRecord, &signed)?)?;
        let found = diff_id(&record);
        anyhow::ensure!(found == expected, "it is the record of {found}");
        Ok(record)
    }
}

fn diff_id(record: &LayerRecord) -> String {
    format!("sha256:{}", hex::encode(record.diff_id))
}

fn absent_is_none(read: Result<Bytes, StoreError>) -> Result<Option<Bytes>, StoreError> {
    match read {
        Ok(stored) => Ok(Some(stored)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn unencodable(what: &'static str, name: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Other { operation: "encode", object: format!("{what} {name}"), reason: error.to_string() }
}
