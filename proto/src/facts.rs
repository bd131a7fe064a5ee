//! What policies are told of an image, as far as it follows from its name and its layers.

use names::ImageName;

use crate::{ImageFacts, LayerFacts};

impl ImageFacts {
    /// `name`: as somebody asked for the image, short or not. Of a local image there is no registry, no repository and no tag.
    pub fn of(name: &str, layers: Vec<LayerFacts>) -> ImageFacts {
        let parsed = name.parse::<ImageName>();
        let reference = parsed.as_ref().map_or_else(|_| name.to_owned(), ToString::to_string);
        let (registry, repository, tag) =
            parsed.as_ref().ok().and_then(ImageName::reference).map_or(("", "", None), |reference| {
                (reference.registry(), reference.repository(), reference.tag())
            });
        let distinct = layers.iter().filter(|layer| !layer.duplicate).map(|layer| layer.size);
        ImageFacts {
            reference,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            compressed_bytes: distinct.fold(0, u64::saturating_add),
            layers,
            ..ImageFacts::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let digest = format!("sha256:{}", "12".repeat(32));
        let expect = |name: &str, registry: &str, repository: &str, tag: Option<&str>| {
            let facts = ImageFacts::of(name, Vec::new());
            assert_eq!(
                (&*facts.registry, &*facts.repository, facts.tag.as_deref()),
                (registry, repository, tag)
            );
        };
        expect("debian:12", "docker.io", "library/debian", Some("12"));
        expect(&format!("host:5000/app@{digest}"), "host:5000", "app", None);
        expect(&format!("host:5000/app:1@{digest}"), "host:5000", "app", Some("1"));
        expect("oci:/srv/a:b", "", "", None);
        expect("Not An Image", "", "", None);
        assert_eq!(ImageFacts::of("debian:12", Vec::new()).reference, "docker.io/library/debian:12");
    }

    #[test]
    fn a_layer_that_stands_twice_is_fetched_once() {
        let layer = |size, duplicate| LayerFacts { size, duplicate, ..LayerFacts::default() };
        let layers = vec![layer(u64::MAX, false), layer(5, false), layer(u64::MAX, true)];
        assert_eq!(ImageFacts::of("a", layers).compressed_bytes, u64::MAX);
        assert_eq!(ImageFacts::of("a", vec![layer(5, false), layer(5, true)]).compressed_bytes, 5);
    }
}
