//! Facts as they cross the bus, and as a policy sees them.

use crate::host::facts as wit;

/// Facts that nobody filled in are empty, as protobuf has it.
pub(crate) fn from_proto(facts: proto::Facts) -> wit::Facts {
    wit::Facts {
        image: image(facts.image.unwrap_or_default()),
        asker: asker(facts.asker.unwrap_or_default()),
        registry: wit::Place { region: facts.registry_region },
        now_ms: facts.now_ms,
        more: pairs(facts.more),
    }
}

fn image(image: proto::ImageFacts) -> wit::Image {
    let platform = image.platform.unwrap_or_default();
    wit::Image {
        reference: image.reference,
        registry: image.registry,
        repository: image.repository,
        tag: image.tag,
        manifest_digest: image.manifest_digest,
        manifest_media_type: image.manifest_media_type,
        schema_version: image.schema_version,
        config_digest: image.config_digest,
        platform: wit::Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
        },
        layers: image.layers.into_iter().map(layer).collect(),
        labels: pairs(image.labels),
        annotations: pairs(image.annotations),
        created_ms: image.created_ms,
        compressed_bytes: image.compressed_bytes,
    }
}

fn layer(layer: proto::LayerFacts) -> wit::Layer {
    wit::Layer {
        digest: layer.digest,
        diff_id: layer.diff_id,
        media_type: layer.media_type,
        size: layer.size,
        empty: layer.empty,
        duplicate: layer.duplicate,
        encrypted: layer.encrypted,
    }
}

fn asker(asker: proto::AskerFacts) -> wit::Asker {
    wit::Asker {
        project: asker.project,
        region: asker.region,
        node: asker.node,
        pool: asker.pool,
        labels: pairs(asker.labels),
    }
}

fn pairs(pairs: Vec<proto::Pair>) -> Vec<(String, String)> {
    pairs.into_iter().map(|pair| (pair.name, pair.value)).collect()
}

/// The image that a new policy is tried on before it is used: an ordinary one.
pub(crate) fn canned() -> wit::Facts {
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let layer = |letter: &str, size| proto::LayerFacts {
        digest: digest(letter),
        diff_id: digest(letter),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size,
        ..proto::LayerFacts::default()
    };
    let image = proto::ImageFacts {
        reference: "registry.example/team/app:1".to_owned(),
        registry: "registry.example".to_owned(),
        repository: "team/app".to_owned(),
        tag: Some("1".to_owned()),
        manifest_digest: digest("a"),
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        schema_version: 2,
        config_digest: digest("b"),
        platform: Some(proto::Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: String::new(),
        }),
        layers: vec![layer("c", 30_000_000), layer("d", 2_000_000)],
        compressed_bytes: 32_000_000,
        created_ms: Some(1_767_225_600_000),
        ..proto::ImageFacts::default()
    };
    let asker = proto::AskerFacts { project: "default".to_owned(), ..proto::AskerFacts::default() };
    from_proto(proto::Facts {
        image: Some(image),
        asker: Some(asker),
        now_ms: 1_798_761_600_000,
        ..proto::Facts::default()
    })
}
