//! What a notification says, in whichever format. Pure: bytes of somebody else in, names and digests out.
//!
//! | who | body |
//! |---|---|
//! | distribution (Docker's registry) | `{"events": [{"action", "target": {"repository", "digest", "tag", "mediaType"}}]}` |
//! | Harbor | `{"type": "PUSH_ARTIFACT", "event_data": {"resources": […], "repository": {…}}}` |
//! | CloudEvents 1.0, structured, in a batch, or with the attributes in headers | Harbor's `{resources, repository}`, Azure's `{action, target}`, Google's |
//! | Google's registry, by Pub/Sub | `{"message": {"data": base64 of {"action", "digest", "tag"}}}` |
//! | GitHub's, `package` or `registry_package` | `{"action", "package": {…}}` |

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use names::ManifestDigest;
use serde::Deserialize;
use serde_json::Value;

use super::{Pushed, Registry};

/// Events of one body; registries send one to some dozens.
const EVENTS_MAX: usize = 256;
/// Manifests and indexes; a registry tells of layers as well.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// One event.
pub(super) type Told = Result<Pushed, Ignored>;

/// Why an event is of no interest. That is no error: registries tell of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ignored {
    /// Pulls, deletions, scans.
    NoPush,
    /// Layers, configs.
    NoManifest,
    NotAllowed,
    OtherRegistry,
    /// A push, but of nothing that can be named.
    Malformed,
    /// The same waits already.
    Duplicate,
}

/// Why a body says nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Unread {
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the body is in no format that is known: distribution's, Harbor's, CloudEvents 1.0")]
    Unknown,
    #[error("the body is {0} as it should not be: {1}")]
    Malformed(&'static str, String),
    #[error("the body holds more than {EVENTS_MAX} events")]
    TooMany,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    action: String,
    #[serde(default)]
    target: Target,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Target {
    #[serde(rename = "mediaType")]
    media_type: String,
    repository: String,
    digest: String,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct HarborData {
    #[serde(default)]
    resources: Vec<HarborResource>,
    repository: HarborRepository,
}

#[derive(Deserialize)]
struct HarborResource {
    #[serde(default)]
    digest: String,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct HarborRepository {
    repo_full_name: String,
}

#[derive(Deserialize)]
struct GoogleData {
    #[serde(default)]
    action: String,
    digest: String,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Package {
    #[serde(default)]
    package_type: String,
    namespace: String,
    name: String,
    package_version: Option<PackageVersion>,
}

#[derive(Deserialize)]
struct PackageVersion {
    #[serde(default)]
    version: String,
    container_metadata: Option<ContainerMetadata>,
}

#[derive(Deserialize)]
struct ContainerMetadata {
    tag: Option<PackageTag>,
}

#[derive(Deserialize)]
struct PackageTag {
    name: Option<String>,
}

/// All events of a body. `kind`: the type of a CloudEvent whose attributes stand in the request's headers.
pub(super) fn read(registry: &Registry, body: &[u8], kind: Option<&str>) -> Result<Vec<Told>, Unread> {
    let value = serde_json::from_slice(body).map_err(|error| Unread::NotJson(error.to_string()))?;
    let told = match (value, kind) {
        (value, Some(kind)) => data(registry, value, kind)?,
        (Value::Array(batch), None) => {
            let mut told = Vec::new();
            for event in batch {
                told.extend(cloud_event(registry, event)?);
                if told.len() > EVENTS_MAX {
                    return Err(Unread::TooMany);
                }
            }
            told
        }
        (value, None) if value.get("specversion").is_some() => cloud_event(registry, value)?,
        (value, None) => data(registry, value, "")?,
    };
    if told.len() > EVENTS_MAX { Err(Unread::TooMany) } else { Ok(told) }
}

fn cloud_event(registry: &Registry, mut event: Value) -> Result<Vec<Told>, Unread> {
    let kind = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if event.get("specversion").and_then(Value::as_str) != Some("1.0") || kind.is_empty() {
        return Err(Unread::Malformed("a CloudEvent", "specversion 1.0 and a type expected".to_owned()));
    }
    let carried = match (event.get_mut("data").map(Value::take), event.get("data_base64")) {
        (Some(Value::String(text)), _) => parse(text.as_bytes())?,
        (Some(value), _) => value,
        (None, Some(Value::String(text))) => decode(text)?,
        (None, _) => return Err(Unread::Malformed("a CloudEvent", "it has no data".to_owned())),
    };
    data(registry, carried, &kind)
}

/// By what it looks like, as one thing is sent in several wrappings. `kind`: of the CloudEvent around it; empty: there is none.
fn data(registry: &Registry, value: Value, kind: &str) -> Result<Vec<Told>, Unread> {
    let has = |key: &str| value.get(key).is_some();
    if has("events") {
        return distribution(value);
    }
    if has("target") {
        return Ok(vec![typed::<Event>("an event of a registry", value)?.told()]);
    }
    if has("event_data") {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let data = value.get("event_data").cloned().unwrap_or_default();
        return harbor(data, kind == "PUSH_ARTIFACT");
    }
    if has("resources") {
        return harbor(value, kind == "harbor.artifact.pushed");
    }
    if let Some(message) = value.get("message") {
        let carried = message.get("data").and_then(Value::as_str).unwrap_or_default();
        return Ok(vec![google(registry, decode(carried)?)?]);
    }
    if has("package") || has("registry_package") {
        return Ok(vec![github(&value)?]);
    }
    if has("digest") {
        return Ok(vec![google(registry, value)?]);
    }
    // Of a known kind, but without what is looked for, as others may send with it.
    if kind.is_empty() { Err(Unread::Unknown) } else { Ok(vec![Err(Ignored::NoPush)]) }
}

fn distribution(mut value: Value) -> Result<Vec<Told>, Unread> {
    let events = value.get_mut("events").map(Value::take).unwrap_or_default();
    let events: Vec<Event> = typed("a list of events", events)?;
    Ok(events.into_iter().map(Event::told).collect())
}

impl Event {
    fn told(self) -> Told {
        let Target { media_type, repository, digest, tag } = self.target;
        if self.action != "push" {
            return Err(Ignored::NoPush);
        }
        if !media_type.is_empty() && !MANIFESTS.contains(&media_type.as_str()) {
            return Err(Ignored::NoManifest);
        }
        pushed(repository, &digest, tag)
    }
}

fn harbor(value: Value, is_push: bool) -> Result<Vec<Told>, Unread> {
    if !is_push {
        return Ok(vec![Err(Ignored::NoPush)]);
    }
    let data: HarborData = typed("an event of Harbor", value)?;
    let repository = data.repository.repo_full_name;
    Ok(data.resources.into_iter().map(|one| pushed(repository.clone(), &one.digest, one.tag)).collect())
}

/// Digest and tag are whole names.
fn google(registry: &Registry, value: Value) -> Result<Told, Unread> {
    let GoogleData { action, digest, tag } = typed("an event of Google's registry", value)?;
    if action != "INSERT" {
        return Ok(Err(Ignored::NoPush));
    }
    let told = || {
        let named = registry.own(&digest)?;
        let tag = tag.as_deref().map(|tag| registry.own(tag)).transpose()?;
        let tag = tag.filter(|tag| tag.repository() == named.repository());
        let tag = tag.and_then(|tag| tag.tag().map(str::to_owned));
        pushed(named.repository().to_owned(), named.digest().unwrap_or_default(), tag)
    };
    Ok(told())
}

fn github(value: &Value) -> Result<Told, Unread> {
    let action = value.get("action").and_then(Value::as_str).unwrap_or_default();
    let package = value.get("registry_package").or(value.get("package")).cloned().unwrap_or_default();
    let package: Package = typed("a package of GitHub", package)?;
    if !matches!(action, "published" | "updated") || !package.package_type.eq_ignore_ascii_case("container") {
        return Ok(Err(Ignored::NoPush));
    }
    let Some(version) = package.package_version else { return Ok(Err(Ignored::Malformed)) };
    let tag = version.container_metadata.and_then(|of| of.tag).and_then(|tag| tag.name);
    let repository = format!("{}/{}", package.namespace, package.name).to_ascii_lowercase();
    Ok(pushed(repository, &version.version, tag))
}

fn pushed(repository: String, digest: &str, tag: Option<String>) -> Told {
    let digest: ManifestDigest = digest.parse().map_err(|_| Ignored::Malformed)?;
    // Of what has no tag some say an empty one, and some the digest.
    let tag = tag.filter(|tag| !tag.is_empty() && !tag.contains(':'));
    Ok(Pushed { repository, digest, tag })
}

fn decode(text: &str) -> Result<Value, Unread> {
    let bytes = BASE64_STANDARD.decode(text);
    let bytes = bytes.map_err(|error| Unread::Malformed("a message", format!("its data: {error}")))?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Value, Unread> {
    serde_json::from_slice(bytes)
        .map_err(|error| Unread::Malformed("a message", format!("its data: {error}")))
}

fn typed<T: serde::de::DeserializeOwned>(what: &'static str, value: Value) -> Result<T, Unread> {
    serde_json::from_value(value).map_err(|error| Unread::Malformed(what, error.to_string()))
}

impl Ignored {
    /// In answers and metrics.
    pub(super) fn code(self) -> &'static str {
        match self {
            Ignored::NoPush => "no-push",
            Ignored::NoManifest => "no-manifest",
            Ignored::NotAllowed => "not-allowed",
            Ignored::OtherRegistry => "other-registry",
            Ignored::Malformed => "malformed",
            Ignored::Duplicate => "duplicate",
        }
    }
}

#[cfg(test)]
mod tests;
