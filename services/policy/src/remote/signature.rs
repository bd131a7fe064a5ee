//! Signatures as cosign lays them out beside what they sign.
//!
//! ```text
//! REPOSITORY:sha256-<hex>.sig     a manifest, found by the digest of what is signed
//!   layer                         payload: JSON that names that digest
//!     annotation                  base64 of the ECDSA signature over the payload's bytes
//! ```
//!
//! Several signatures are several layers. So `cosign sign --key` and `sluice policy sign` do the same, and each can verify
//! what the other wrote. Format: sigstore's `SIGNATURE_SPEC`.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use registry::document::{OCI_CONFIG, OCI_MANIFEST};
use registry::{BlobDigest, Descriptor, brief};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::artifact::shown;

/// Signatures looked at; more are ignored.
pub(super) const SIGNATURES_MAX: usize = 32;
/// One payload, in bytes; usual ones have 250.
pub(super) const PAYLOAD_MAX: u64 = 64 * 1024;
const LAYER: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const TYPE: &str = "cosign container image signature";
/// The config is an image's, as old registries want it; nobody reads it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A payload, and what is said to be its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signature {
    #[serde(with = "in_base64")]
    pub(crate) payload: Vec<u8>,
    #[serde(with = "in_base64")]
    pub(crate) signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: BlobDigest,
}

/// The tag that signatures of a manifest have.
pub(super) fn tag(signed: BlobDigest) -> String {
    format!("sha256-{}.sig", signed.hex())
}

/// What is signed to sign a manifest. The repository is for people: copies of a plugin are as good as the original.
pub(super) fn payload(repository: &str, signed: BlobDigest) -> Vec<u8> {
    let critical = json!({
        "identity": { "docker-reference": repository },
        "image": { "docker-manifest-digest": signed.to_string() },
        "type": TYPE,
    });
    json!({ "critical": critical, "optional": null }).to_string().into_bytes()
}

/// The digest of the manifest that a payload speaks of.
pub(crate) fn signed_by(payload: &[u8]) -> anyhow::Result<BlobDigest> {
    let Payload { critical } = serde_json::from_slice(payload).context("its payload is not understood")?;
    ensure!(critical.kind == TYPE, "its payload is of the type {}, not {TYPE:?}", brief(&critical.kind));
    Ok(critical.image.digest)
}

/// All signatures of one manifest.
#[derive(Debug, Default)]
pub(super) struct Signatures {
    /// As they stand in the manifest, whatever they are.
    layers: Vec<Value>,
}

impl Signatures {
    pub(super) fn read(manifest: &[u8]) -> anyhow::Result<Signatures> {
        #[derive(Deserialize)]
        struct Manifest {
            layers: Vec<Value>,
        }
        let Manifest { layers } =
            serde_json::from_slice(manifest).context("it is no manifest of signatures")?;
        Ok(Signatures { layers })
    }

    /// Where each payload is, and its signature. What is no signature that we know is left out.
    pub(super) fn listed(&self) -> Vec<(Descriptor, Vec<u8>)> {
        let signature = |layer: &Value| {
            let descriptor: Descriptor = serde_json::from_value(layer.clone()).ok()?;
            let signature = STANDARD.decode(descriptor.annotations.get(ANNOTATION)?).ok()?;
            (descriptor.media_type == LAYER).then_some((descriptor, signature))
        };
        self.layers.iter().filter_map(signature).take(SIGNATURES_MAX).collect()
    }

    pub(super) fn add(&mut self, signature: &Signature) {
        let mut layer = shown(&Descriptor::of(LAYER, &signature.payload));
        layer["annotations"] = json!({ ANNOTATION: STANDARD.encode(&signature.signature) });
        self.layers.push(layer);
    }

    /// The config and the manifest to upload.
    pub(super) fn packed(&self) -> (Bytes, Bytes) {
        let digests: Vec<&Value> = self.layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": "",
            "created": NEVER,
            "history": vec![json!({ "created": NEVER }); digests.len()],
            "os": "",
            "rootfs": { "type": "layers", "diff_ids": digests },
            "config": {},
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": shown(&Descriptor::of(OCI_CONFIG, &config)),
            "layers": self.layers,
        });
        (config, Bytes::from(manifest.to_string()))
    }
}

mod in_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_added_to_those_that_are_there() {
        let digest = BlobDigest::of(b"manifest");
        let payload = payload("registry.example/policy", digest);
        assert_eq!(signed_by(&payload).unwrap(), digest);
        let mut signatures = Signatures::default();
        for number in [1, 2] {
            signatures.add(&Signature { payload: payload.clone(), signature: vec![number] });
            signatures = Signatures::read(&signatures.packed().1).unwrap();
        }
        let listed = signatures.listed();
        assert_eq!(listed.iter().map(|(_, signature)| signature[0]).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(listed[0].0.check(&payload), Ok(()));
    }

    #[test]
    fn what_is_no_signature_is_left_out_or_an_error() {
        let foreign = json!({ "layers": [
            { "mediaType": LAYER, "digest": BlobDigest::of(b"x").to_string(), "size": 1 },
            { "mediaType": "other", "digest": BlobDigest::of(b"x").to_string(), "size": 1, "annotations": { ANNOTATION: "AA==" } },
            { "mediaType": LAYER, "digest": "sha256:x", "size": 1, "annotations": { ANNOTATION: "AA==" } },
            { "mediaType": LAYER, "digest": BlobDigest::of(b"x").to_string(), "size": 1, "annotations": { ANNOTATION: "?" } },
        ] });
        assert!(Signatures::read(foreign.to_string().as_bytes()).unwrap().listed().is_empty());
        assert!(Signatures::read(b"{}").is_err());
        let attestation = json!({ "critical": {
            "image": { "docker-manifest-digest": BlobDigest::of(b"x").to_string() }, "type": "attestation",
        } });
        let error = signed_by(attestation.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("its payload is of the type \"attestation\""), "{error}");
        assert!(signed_by(b"{}").is_err());
    }
}
