//! What prefetch policies are told of an image and of this node.
//!
//! Everything that the image's record and its config say, in the words of the fetcher's facts. Of the manifest the record
//! keeps no annotations and no media type, and where the registry is only fetchers are told: these stay empty, as the
//! contract says (`plugins/wit/policy.wit`).

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use image::record::LayerRef;
use image::{ImageConfig, ImageRecord, config};
use proto::{AskerFacts, Facts, ImageFacts, LayerFacts, Pair, Platform, ResolveRequest};

/// `asked`: by which name, and for which platform, somebody asks for the image.
pub(super) fn facts(asked: &ResolveRequest, record: &ImageRecord, asker: AskerFacts) -> Facts {
    Facts {
        image: Some(image_facts(asked, record)),
        asker: Some(asker),
        now_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64),
        ..Facts::default()
    }
}

fn image_facts(asked: &ResolveRequest, record: &ImageRecord) -> ImageFacts {
    let config = ImageConfig::read(&record.config);
    ImageFacts {
        manifest_digest: record.manifest_digest.clone(),
        // The first format has no layers that could have been imported.
        schema_version: 2,
        config_digest: config::digest(&record.config),
        platform: config.platform.or_else(|| wanted(asked)).map(platform),
        labels: Pair::bounded(config.labels),
        created_ms: config.created_ms,
        // Whoever mounts by hand may say `debian:12`.
        ..ImageFacts::of(&asked.reference, layer_facts(&record.layers))
    }
}

/// None is encrypted: it could not have been imported.
fn layer_facts(layers: &[LayerRef]) -> Vec<LayerFacts> {
    let mut seen = HashSet::new();
    let facts = |layer: &LayerRef| LayerFacts {
        digest: layer.digest.clone(),
        diff_id: layer.diff_id.clone(),
        media_type: layer.media_type.clone(),
        size: layer.size,
        empty: layer.entries == 0,
        duplicate: !seen.insert(layer.digest.clone()),
        encrypted: false,
    };
    layers.iter().map(facts).collect()
}

/// Configs written by hand may say nothing: then the image is for whom asked.
fn wanted(asked: &ResolveRequest) -> Option<config::Platform> {
    let Platform { os, architecture, variant } = asked.platform.as_ref()?;
    config::Platform::stated(os, architecture, variant)
}

fn platform(platform: config::Platform) -> Platform {
    Platform { os: platform.os, architecture: platform.architecture, variant: platform.variant }
}

#[cfg(test)]
mod tests {
    use image::Digest;
    use image::record::IndexRef;

    use super::*;

    fn record(config: &str) -> ImageRecord {
        let index = IndexRef { digest: Digest::of(b""), plain_len: 0, stored_len: 0 };
        let layer = |digest: &str, entries| LayerRef {
            digest: digest.to_owned(),
            diff_id: digest.to_owned(),
            media_type: "layer".to_owned(),
            size: u64::MAX / 2,
            entries,
        };
        ImageRecord {
            project: "default".to_owned(),
            manifest_digest: "sha256:m".to_owned(),
            references: vec!["docker.io/library/another:1".to_owned()],
            config: config.into(),
            tree: index,
            map: index,
            layers: vec![layer("a", 1), layer("b", 0), layer("a", 1), layer("c", 1)],
            files: 0,
            plain_bytes: 0,
            stored_bytes: 0,
            imported_unix: 0,
            imported_by: String::new(),
        }
    }

    fn asked(reference: &str) -> ResolveRequest {
        ResolveRequest { reference: reference.to_owned(), ..ResolveRequest::default() }
    }

    #[test]
    fn are_what_the_config_says_under_the_name_that_was_asked_for() {
        let json = r#"{"os":"linux","architecture":"arm","variant":"v7","created":"2026-01-01T00:00:00Z",
            "config":{"Labels":{"team":"a"}}}"#;
        let facts = facts(&asked("debian:12"), &record(json), AskerFacts::default()).image.unwrap();
        assert_eq!(facts.reference, "docker.io/library/debian:12");
        assert_eq!((facts.repository.as_str(), facts.tag.as_deref()), ("library/debian", Some("12")));
        let platform = facts.platform.unwrap();
        assert_eq!((&*platform.os, &*platform.architecture, &*platform.variant), ("linux", "arm", "v7"));
        assert_eq!((facts.created_ms, facts.labels.len()), (Some(1_767_225_600_000), 1));
        assert_eq!((&*facts.labels[0].name, &*facts.labels[0].value), ("team", "a"));
        let of_layers: Vec<_> = facts.layers.iter().map(|layer| (layer.empty, layer.duplicate)).collect();
        assert_eq!(of_layers, [(false, false), (true, false), (false, true), (false, false)]);
        assert_eq!(facts.compressed_bytes, u64::MAX);
        // Computed with sha256sum.
        assert_eq!(
            super::facts(&asked("a"), &record("{}"), AskerFacts::default()).image.unwrap().config_digest,
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }

    #[test]
    fn of_a_hostile_config_nothing_is_told_or_little() {
        let malformed = record("{\"os\":");
        let facts = facts(&asked("oci:/srv/a:b"), &malformed, AskerFacts::default()).image.unwrap();
        assert_eq!((facts.reference.as_str(), facts.registry.as_str()), ("oci:/srv/a:b", ""));
        assert_eq!((facts.platform, facts.labels, facts.created_ms), (None, vec![], None));
        let labels: Vec<String> =
            (0..1_000).map(|number| format!("\"{number}\":\"{}\"", "x".repeat(1_000))).collect();
        let huge = record(&format!("{{\"config\":{{\"Labels\":{{{}}}}}}}", labels.join(",")));
        let told = super::facts(&asked("a"), &huge, AskerFacts::default()).image.unwrap().labels.len();
        assert!(told > 10 && told < 70, "{told}");
    }
}
