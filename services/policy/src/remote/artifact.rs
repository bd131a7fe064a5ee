//! The layout of a WebAssembly component in a registry, as the CNCF has it: a manifest with a config of a type of its
//! own and exactly one layer, the component.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use registry::document::OCI_MANIFEST;
use registry::{Descriptor, brief};
use serde::Deserialize;
use serde_json::json;

use crate::Outline;

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
/// What tools wrote before there was a common layout.
const OLD_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// The format wants a time. One that never changes, so that the same plugin has the same digest whenever it is pushed.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What of such a manifest is read. The config is not: what it says of the component is found in the component itself.
#[derive(Debug)]
pub(super) struct Artifact {
    pub(super) component: Descriptor,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

impl Artifact {
    pub(super) fn read(manifest: &[u8]) -> anyhow::Result<Artifact> {
        let manifest: Manifest =
            serde_json::from_slice(manifest).context("it is no manifest of an artifact")?;
        ensure!(
            manifest.schema_version == 2,
            "its manifest is of version {}, not 2",
            manifest.schema_version
        );
        if let Some(other) = manifest.media_type.filter(|media_type| media_type != OCI_MANIFEST) {
            bail!("its manifest is of the type {}, not {OCI_MANIFEST}", brief(&other));
        }
        let config = &manifest.config.media_type;
        ensure!(
            config == CONFIG,
            "it is no WebAssembly: its config is of the type {}, not {CONFIG}",
            brief(config)
        );
        let [component] = manifest.layers.as_slice() else {
            bail!("it has {} layers; a plugin has exactly one", manifest.layers.len());
        };
        let layer = component.media_type.as_str();
        ensure!(matches!(layer, LAYER | OLD_LAYER), "its layer is of the type {}, not {LAYER}", brief(layer));
        Ok(Artifact { component: component.clone() })
    }
}

/// What is uploaded of a plugin.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) config: Bytes,
    pub(super) manifest: Bytes,
}

/// The same bytes for the same plugin and title.
pub(super) fn pack(component: &[u8], title: &str, outline: &Outline) -> Packed {
    let component = Descriptor::of(LAYER, component);
    let config = json!({
        "created": CREATED,
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [component.digest.to_string()],
        "component": { "exports": outline.exports, "imports": outline.imports },
    });
    let config = Bytes::from(config.to_string());
    let described = Descriptor::of(CONFIG, &config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": shown(&described),
        "layers": [{
            "mediaType": component.media_type,
            "digest": component.digest.to_string(),
            "size": component.size,
            "annotations": { "org.opencontainers.image.title": title },
        }],
        "annotations": {
            "org.opencontainers.image.version": outline.version,
            "org.opencontainers.image.description": outline.summary,
        },
    });
    Packed { config, manifest: Bytes::from(manifest.to_string()) }
}

pub(super) fn shown(descriptor: &Descriptor) -> serde_json::Value {
    json!({
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest.to_string(),
        "size": descriptor.size,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn outline() -> Outline {
        Outline {
            world: "eligibility",
            version: "1.2.3".to_owned(),
            summary: "refuses".to_owned(),
            imports: vec!["sluice:policy/log@0.1.0".to_owned()],
            exports: vec!["sluice:policy/judge@0.1.0".to_owned()],
        }
    }

    /// A packed plugin's manifest, changed.
    fn changed(change: impl FnOnce(&mut Value)) -> String {
        let packed = pack(b"component", "a.wasm", &outline());
        let mut manifest = serde_json::from_slice(&packed.manifest).unwrap();
        change(&mut manifest);
        match Artifact::read(manifest.to_string().as_bytes()) {
            Ok(_) => "read".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn what_is_packed_can_be_read_and_is_always_the_same() {
        let packed = pack(b"component", "a.wasm", &outline());
        assert_eq!(packed.manifest, pack(b"component", "a.wasm", &outline()).manifest);
        let read = Artifact::read(&packed.manifest).unwrap();
        assert_eq!(read.component.check(b"component"), Ok(()));
        assert_eq!(changed(|manifest| manifest["layers"][0]["mediaType"] = OLD_LAYER.into()), "read");
    }

    #[test]
    fn other_artifacts_are_refused_by_what_they_are() {
        let image = "application/vnd.oci.image.config.v1+json";
        let config = changed(|manifest| manifest["config"]["mediaType"] = image.into());
        assert!(config.contains(image) && config.contains("it is no WebAssembly"), "{config}");
        let two = changed(|manifest| {
            let layer = manifest["layers"][0].clone();
            manifest["layers"].as_array_mut().unwrap().push(layer);
        });
        assert!(two.contains("it has 2 layers"), "{two}");
        let none = changed(|manifest| manifest["layers"] = json!([]));
        assert!(none.contains("it has 0 layers"), "{none}");
        let tar = changed(|manifest| manifest["layers"][0]["mediaType"] = "application/tar".into());
        assert!(tar.contains("its layer is of the type \"application/tar\""), "{tar}");
        let index = changed(|manifest| manifest["mediaType"] = "application/index".into());
        assert!(index.contains("its manifest is of the type"), "{index}");
        let digest = changed(|manifest| manifest["layers"][0]["digest"] = "sha256:../..".into());
        assert!(digest.contains("not a digest that can be verified"), "{digest}");
    }
}
