//! What of a registry one permission is for.

use names::ImageName;

/// Who may read one repository may read all of it, and nothing of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlobPlace {
    /// Empty: this machine's disk.
    pub registry: String,
    /// With its registry.
    pub repository: String,
    /// Other names of the registry.
    pub also: Vec<String>,
}

impl BlobPlace {
    /// Where an image's blobs are.
    pub fn of(name: &ImageName) -> BlobPlace {
        let (registry, repository) = match name {
            ImageName::Registry(name) => {
                (name.registry().to_owned(), format!("{}/{}", name.registry(), name.repository()))
            }
            ImageName::Layout { dir, .. } => (String::new(), format!("oci:{}", dir.display())),
            ImageName::Archive { file } => (String::new(), format!("docker-archive:{}", file.display())),
        };
        BlobPlace { registry, repository, also: Vec::new() }
    }

    /// Its files are read for its owner, who reads them anyway.
    pub fn is_on_disk(&self) -> bool {
        self.registry.is_empty()
    }

    /// Whether an image of that name, in full, is of here.
    pub fn holds(&self, reference: &str) -> bool {
        let rest = reference.strip_prefix(&*self.repository);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
    }

    /// Whether that is a name of its registry.
    pub fn is_of_registry(&self, registry: &str) -> bool {
        !self.is_on_disk() && (self.registry == registry || self.also.iter().any(|also| also == registry))
    }

    /// Whether an image of that name, in full, is of the same registry.
    pub fn is_registry_of(&self, reference: &str) -> bool {
        reference.split_once('/').is_some_and(|(registry, _)| self.is_of_registry(registry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_repository_whatever_the_tag() {
        let place = |text: &str| BlobPlace::of(&text.parse().unwrap());
        let app = place("localhost:5000/team/app:1");
        assert_eq!(
            (app.registry.as_str(), app.repository.as_str()),
            ("localhost:5000", "localhost:5000/team/app")
        );
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (reference, holds, registry) in [
            ("localhost:5000/team/app:1".to_owned(), true, true),
            (format!("localhost:5000/team/app@{digest}"), true, true),
            (format!("localhost:5000/team/app:2@{digest}"), true, true),
            ("localhost:5000/team/app2:1".to_owned(), false, true),
            ("localhost:5000/team/app/more:1".to_owned(), false, true),
            ("localhost:50000/team/app:1".to_owned(), false, false),
            ("oci:/localhost:5000/team/app:1".to_owned(), false, false),
        ] {
            assert_eq!(
                (app.holds(&reference), app.is_registry_of(&reference)),
                (holds, registry),
                "{reference}"
            );
        }
        let layout = place("oci:/srv/layout:v1");
        assert!(layout.is_on_disk() && layout.holds("oci:/srv/layout") && layout.holds("oci:/srv/layout:v2"));
        assert!(!layout.is_registry_of("oci:/srv/layout") && !layout.is_registry_of("/x"));
        let renamed = BlobPlace { also: vec!["other.example".to_owned()], ..app };
        assert!(
            renamed.is_registry_of("other.example/team/app:1") && !renamed.holds("other.example/team/app:1")
        );
    }
}
