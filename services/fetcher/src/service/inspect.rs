//! inspect: what is known of an image without importing it.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use image::ImageRecord;
use proto::{InspectLayer, InspectReply, InspectRequest, Starts};
use store::{ProjectStore, StoreError};
use tonic::Status;

use super::Service;
use super::images::summary;
use super::judging::Asker;
use super::starts::history;
use crate::import::proofs::{Standing, standing};
use crate::source::{Access, BlobPlace, Credential, Found, LayerDescriptor};

/// Layer records looked up at the same time.
const LOOKUPS_AT_ONCE: usize = 8;
/// Archives without a member, as tools write them: two zero blocks, or as many as fill 10 KiB.
const EMPTY_DIFF_IDS: [&str; 2] = [
    "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    "sha256:84ff92691f909a05b224e1c56abb4864f01b4f8e3c854e4bb4c7baf1d3f6d652",
];

impl Service {
    pub(super) async fn inspect(self: Arc<Self>, request: InspectRequest) -> Result<InspectReply, Status> {
        let project = self.project(&request.project)?;
        let name = self.image_name(&request.reference)?;
        let access = Access {
            credential: self.credential_to_inspect(&request)?.and_then(Credential::from_proto),
            plain_http: request.plain_http,
            own: false,
        };
        let (_, found) = self.find(&name, access, &request.platform.unwrap_or_default()).await?;
        let place = self.place(&name);
        let record = self.records.image(&project, &found.manifest_digest).await?.map(|image| image.record);
        // Who has another registry name a manifest learns nothing of what is here of it.
        let of_here = |record: &ImageRecord| {
            place.is_on_disk() || record.references.iter().any(|reference| place.holds(reference))
        };
        let record = record.filter(of_here);
        let starts = match record {
            Some(_) => history(&project, &found.manifest_digest).await?.summary(),
            None => Starts::default(),
        };
        let said = request.asker.as_ref();
        let node = said.map_or("", |asker| asker.node.as_str());
        let asker = Asker { project: project.name(), node, said };
        let judged = self.judge(&name, &found, asker).await?;
        let lookups: Vec<_> =
            found.layers.iter().map(|layer| self.is_known(&project, &place, layer)).collect();
        let known: Vec<bool> = stream::iter(lookups).buffered(LOOKUPS_AT_ONCE).try_collect().await?;
        Ok(InspectReply {
            reference: name.to_string(),
            layers: layers(&found, &known, record.as_ref()),
            manifest_digest: found.manifest_digest,
            manifest_media_type: found.media_type,
            config_digest: found.config_digest,
            platform: Some(found.platform),
            imported: record.is_some(),
            image: record.as_ref().map(summary),
            ineligible: judged.reasons(),
            verdicts: judged.verdicts,
            facts: Some(judged.facts),
            starts: Some(starts),
        })
    }
}

impl Service {
    /// Whether an import would not have to read the layer. Layers of the old format have no diff id, by which records are named.
    async fn is_known(
        &self,
        project: &ProjectStore,
        place: &BlobPlace,
        layer: &LayerDescriptor,
    ) -> Result<bool, StoreError> {
        if layer.diff_id.is_empty() {
            return Ok(false);
        }
        if place.is_on_disk() {
            return project.has_layer(&layer.diff_id).await;
        }
        let sources = self.records.layer_sources(project, &layer.diff_id).await?;
        Ok(standing(place, &layer.digest, &sources) == Standing::Known)
    }
}

pub(super) fn layers(found: &Found, known: &[bool], record: Option<&ImageRecord>) -> Vec<InspectLayer> {
    let mut seen = HashSet::new();
    let inspect = |(layer, known): (&LayerDescriptor, &bool)| InspectLayer {
        digest: layer.digest.clone(),
        media_type: layer.media_type.clone(),
        size: layer.size,
        diff_id: layer.diff_id.clone(),
        empty: is_empty(layer, record),
        duplicate: !seen.insert(layer.digest.clone()),
        encrypted: layer.media_type.ends_with("+encrypted"),
        known: *known,
    };
    found.layers.iter().zip(known).map(inspect).collect()
}

fn is_empty(layer: &LayerDescriptor, record: Option<&ImageRecord>) -> bool {
    let scanned = record.and_then(|record| record.layers.iter().find(|known| known.diff_id == layer.diff_id));
    EMPTY_DIFF_IDS.contains(&layer.diff_id.as_str()) || scanned.is_some_and(|known| known.entries == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::BlobDigest;

    #[test]
    fn empty_archives_have_these_digests() {
        assert_eq!(BlobDigest::of(&[0; 1024]).to_string(), EMPTY_DIFF_IDS[0]);
        assert_eq!(BlobDigest::of(&[0; 10240]).to_string(), EMPTY_DIFF_IDS[1]);
    }
}
