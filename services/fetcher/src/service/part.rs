//! A part of an image: its lowest layers, which may be an image of their own to somebody else.
//!
//! A node may have an image and be asked for another that consists of the first's lowest layers, without being told its
//! name. So the part is named by its chain id, and who may read the whole may read the part.

use std::collections::BTreeMap;

use image::limits::REFERENCES_MAX;
use proto::ResolveRequest;
use store::ProjectStore;
use tonic::Status;

use super::Service;
use super::grants::Shown;
use crate::source::{BlobPlace, Found, LayerDescriptor};

/// `found` without all but its lowest `layers`; 0: all of it.
pub(super) fn lowest(mut found: Found, layers: u32) -> Result<Found, Status> {
    let layers = layers as usize;
    if layers == 0 || layers == found.layers.len() {
        return Ok(found);
    }
    if layers > found.layers.len() {
        let (has, image) = (found.layers.len(), &found.manifest_digest);
        return Err(Status::invalid_argument(format!("{image} has {has} layers, not {layers}")));
    }
    found.layers.truncate(layers);
    let chains = image::chain_ids(found.layers.iter().map(|layer| layer.diff_id.as_str()));
    found.manifest_digest = chains.last().unwrap_or_default();
    Ok(found)
}

impl Service {
    /// The whole image of a request for a part of it, when the grant that came along says that the caller may read
    /// it, and the store knows it. Then no registry is asked, unless it last showed the whole long ago, as for a renewal. Also where and when
    /// it did, and when the grant ends.
    pub(super) async fn granted(
        &self,
        project: &ProjectStore,
        place: &BlobPlace,
        request: &ResolveRequest,
    ) -> Result<Option<(Found, Shown, u64)>, Status> {
        let Some(grant) = request.grant.as_ref().filter(|_| request.layers > 0) else { return Ok(None) };
        let of = self.grants.believe(grant)?;
        // What has expired counts as long as it could be renewed: the node could do that first, and gain nothing by it.
        if of.project != project.name() || of.node != request.node || self.grants.renewable(grant).is_err() {
            // The registry may still say yes.
            return Ok(None);
        }
        let grant = of;
        let Some(image) = self.records.image(project, &grant.manifest_digest).await? else { return Ok(None) };
        let record = image.record;
        // By one of its own names, which the part then has too.
        if record.references.len() < REFERENCES_MAX && !record.references.iter().any(|name| place.holds(name))
        {
            return Ok(None);
        }
        // Else a part, which may be all of it, would be granted for as long as the grant of the whole could be renewed.
        let Ok(shown) = self.shown_again(&grant, &record, request).await else { return Ok(None) };
        let found = Found {
            manifest_digest: record.manifest_digest,
            media_type: String::new(),
            schema_version: 2,
            annotations: BTreeMap::new(),
            config_digest: String::new(),
            config: record.config.into(),
            platform: request.platform.clone().unwrap_or_default(),
            layers: record.layers.iter().map(LayerDescriptor::of).collect(),
            ineligible: Vec::new(),
        };
        Ok(Some((found, shown, grant.expires_unix)))
    }
}

#[cfg(test)]
mod tests {
    use crate::source::Compression;

    use super::*;

    fn found(diff_ids: &[&str]) -> Found {
        let layer = |diff_id: &&str| LayerDescriptor {
            digest: String::new(),
            size: 1,
            media_type: String::new(),
            diff_id: format!("sha256:{}", diff_id.repeat(64)),
            compression: Compression::Gzip,
        };
        Found {
            manifest_digest: "sha256:whole".to_owned(),
            media_type: String::new(),
            schema_version: 2,
            annotations: Default::default(),
            config_digest: String::new(),
            config: Default::default(),
            platform: Default::default(),
            layers: diff_ids.iter().map(layer).collect(),
            ineligible: Vec::new(),
        }
    }

    #[test]
    fn a_part_is_named_by_its_chain_id() {
        let whole = found(&["a", "b", "c"]);
        assert_eq!(lowest(whole.clone(), 0).unwrap(), whole);
        assert_eq!(lowest(whole.clone(), 3).unwrap(), whole);
        let first = lowest(whole.clone(), 1).unwrap();
        assert_eq!((first.layers.len(), first.manifest_digest.clone()), (1, first.layers[0].diff_id.clone()));
        assert_ne!(lowest(whole.clone(), 2).unwrap().manifest_digest, whole.layers[1].diff_id);
        assert_eq!(lowest(whole, 4).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
