//! inspect: what is known of an image without importing it.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use image::ImageRecord;
use proto::{InspectLayer, InspectReply, InspectRequest};
use store::{ProjectStore, StoreError};
use tonic::Status;

use super::Service;
use super::images::summary;
use super::judging::Asker;
use super::starts::history;
use crate::source::{Access, Credential, Found, LayerDescriptor};

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
        };
        let (_, found) = self.find(&name, access, &request.platform.unwrap_or_default()).await?;
        let record = self.records.image(&project, &found.manifest_digest).await?.map(|image| image.record);
        let starts = history(&project, &found.manifest_digest).await?.summary();
        let said = request.asker.as_ref();
        let node = said.map_or("", |asker| asker.node.as_str());
        let asker = Asker { project: project.name(), node, said };
        let judged = self.judge(&name, &found, asker).await?;
        let lookups: Vec<_> = found.layers.iter().map(|layer| is_known(&project, layer)).collect();
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

/// Layers of the old format have no diff id, by which records are named.
async fn is_known(project: &ProjectStore, layer: &LayerDescriptor) -> Result<bool, StoreError> {
    Ok(!layer.diff_id.is_empty() && project.has_layer(&layer.diff_id).await?)
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
