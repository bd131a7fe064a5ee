//! What Kubernetes is told: on which objects, in which words. Pure.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event as Object, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use proto::{Event, EventKind};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::config::KubernetesConfig;

/// Events of what is in no namespace stand here.
const CLUSTER_NAMESPACE: &str = "default";
/// The limits of the API, in bytes.
const NOTE_MAX: usize = 1024;
const WORD_MAX: usize = 128;
const NAME_MAX: usize = 253;
/// Whose events these are, before the service.
const CONTROLLER: &str = "sluice.dev";

/// One object that is to be told of.
#[derive(Clone, Debug)]
pub(super) struct Told {
    regarding: ObjectReference,
    /// Of the event.
    namespace: String,
    words: Words,
    image: String,
    detail: String,
}

#[derive(Clone, Copy, Debug)]
struct Words {
    reason: &'static str,
    action: &'static str,
}

/// On the Node, and on each Pod whose uid is known.
pub(super) fn of(event: &Event, config: &KubernetesConfig) -> Vec<Told> {
    let Some(words) = words(event.kind()) else { return Vec::new() };
    let image = if event.image.is_empty() { &event.manifest_digest } else { &event.image };
    let told = |regarding: ObjectReference| Told {
        namespace: regarding.namespace.clone().unwrap_or_else(|| CLUSTER_NAMESPACE.to_owned()),
        regarding,
        words,
        image: image.clone(),
        detail: event.reason.clone(),
    };
    let node = config.nodes.then_some(&event.node).filter(|node| !node.is_empty());
    let pods = event.pods.iter().filter(|pod| config.pods && !pod.uid.is_empty());
    node.map(|node| told(node_reference(node)))
        .into_iter()
        .chain(pods.map(|pod| told(pod_reference(pod))))
        .collect()
}

/// How a repeat is told.
pub(super) fn series(count: u64, event: &Event) -> serde_json::Value {
    json!({ "series": series_of(count, event) })
}

impl Told {
    /// Repeats of one key are one series. The note is not part of it: of what repeats itself, the first one stays.
    pub(super) fn key(&self) -> String {
        format!("{} {} {} {}", self.object(), self.words.reason, self.detail, self.image)
    }

    pub(super) fn object(&self) -> String {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let ObjectReference { kind, namespace, name, uid, .. } = &self.regarding;
        format!("{} {}/{} {}", part(kind), part(namespace), part(name), part(uid))
    }

    /// News of something that goes on, each with other words: no repeat.
    pub(super) fn is_progress(&self) -> bool {
        self.words.reason == IMPORTING.reason
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The same each time for the same event and object.
    pub(super) fn name(&self, event: &Event) -> String {
        let hash = Sha256::digest(format!("{} {}", event.id, self.object()));
        let hash = hex::encode(&hash[..8]);
        let mut name = self.regarding.name.clone().unwrap_or_default().to_ascii_lowercase();
        name.retain(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.'));
        name.truncate(NAME_MAX - hash.len() - 1);
        let name = name.trim_matches(|end: char| !end.is_ascii_alphanumeric());
        if name.is_empty() { format!("sluice.{hash}") } else { format!("{name}.{hash}") }
    }

    pub(super) fn event(&self, event: &Event) -> Object {
        let instance = if event.node.is_empty() { "sluice" } else { &event.node };
        Object {
            metadata: ObjectMeta {
                name: Some(self.name(event)),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(time(event)),
            reporting_controller: Some(format!("{CONTROLLER}/{}", controller(&event.service))),
            reporting_instance: Some(cut(instance, WORD_MAX)),
            regarding: Some(self.regarding.clone()),
            related: (self.regarding.kind.as_deref() == Some("Pod") && !event.node.is_empty())
                .then(|| node_reference(&event.node)),
            reason: Some(self.words.reason.to_owned()),
            action: Some(self.words.action.to_owned()),
            note: Some(cut(&note(event), NOTE_MAX)),
            type_: Some(if event.is_warning() { "Warning" } else { "Normal" }.to_owned()),
            series: (event.count > 1).then(|| series_of(event.count, event)),
            ..Object::default()
        }
    }
}

const IMPORTING: Words = Words { reason: "ImageImporting", action: "ImportImage" };

/// None: of this kind no object is told.
fn words(kind: EventKind) -> Option<Words> {
    let stream = |reason| Some(Words { reason, action: "StreamImage" });
    match kind {
        EventKind::Streaming => stream("ImageStreaming"),
        EventKind::Complete => stream("ImageStreamingComplete"),
        EventKind::Fallback => stream("ImageStreamingFallback"),
        EventKind::Denied => stream("ImageStreamingDenied"),
        EventKind::Degraded => stream("ImageStreamingDegraded"),
        EventKind::Quota => stream("QuotaExceeded"),
        EventKind::PolicyFailed => Some(Words { reason: "PolicyPluginFailed", action: "JudgeImage" }),
        EventKind::Importing => Some(IMPORTING),
        EventKind::Unspecified | EventKind::PolicySet | EventKind::Unjudged => None,
    }
}

/// What people read. Where an image streams it is the sentence that they know from elsewhere.
fn note(event: &Event) -> String {
    let Event { image, message, reason, .. } = event;
    let named = image.is_empty() || message.contains(image.as_str());
    match event.kind() {
        EventKind::Streaming | EventKind::Complete | EventKind::Importing if named => message.clone(),
        EventKind::Fallback | EventKind::Denied => {
            format!("Image {image} is pulled without streaming ({reason}): {message}")
        }
        _ if named => format!("{message} ({reason})"),
        _ => format!("Image {image}: {message} ({reason})"),
    }
}

/// As kubelets refer to their node: `kubectl describe node` looks for the name as uid.
fn node_reference(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}

fn pod_reference(pod: &proto::Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

fn series_of(count: u64, event: &Event) -> EventSeries {
    EventSeries { count: i32::try_from(count).unwrap_or(i32::MAX), last_observed_time: time(event) }
}

fn time(event: &Event) -> MicroTime {
    let at = i64::try_from(event.at_ms).ok().and_then(|at| Timestamp::from_millisecond(at).ok());
    MicroTime(at.unwrap_or(Timestamp::UNIX_EPOCH))
}

/// A qualified name's second part.
fn controller(service: &str) -> String {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let service = service.trim_matches('-');
    match !service.is_empty() && service.len() <= 63 && service.bytes().all(good) {
        true => service.to_owned(),
        false => "sluice".to_owned(),
    }
}

fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, reason: &str, message: &str) -> Event {
        Event {
            id: "event-1".to_owned(),
            at_ms: 1_000,
            service: "frontend".to_owned(),
            node: "node-1".to_owned(),
            image: "r.io/app:1".to_owned(),
            ..Event::new(kind, reason, message)
        }
    }

    fn streaming() -> Event {
        event(EventKind::Streaming, "image-streaming", "Image r.io/app:1 is backed by image streaming.")
    }

    fn pod(uid: &str) -> proto::Pod {
        proto::Pod { namespace: "shop".to_owned(), name: "web-1".to_owned(), uid: uid.to_owned() }
    }

    #[test]
    fn a_node_is_told_in_the_words_that_people_know() {
        let event = streaming();
        let [told] = &of(&event, &KubernetesConfig::default())[..] else { panic!("one object") };
        let object = serde_json::to_value(told.event(&event)).unwrap();
        let expected = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": { "name": told.name(&event), "namespace": "default" },
            "eventTime": "1970-01-01T00:00:01.000000Z",
            "reportingController": "sluice.dev/frontend", "reportingInstance": "node-1",
            "regarding": { "apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1" },
            "reason": "ImageStreaming", "action": "StreamImage", "type": "Normal",
            "note": "Image r.io/app:1 is backed by image streaming.",
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn pods_are_told_where_their_uid_is_known() {
        let event = Event { pods: vec![pod("u-1"), pod("")], count: 3, ..streaming() };
        let told = of(&event, &KubernetesConfig::default());
        assert_eq!(told.len(), 2);
        let object = told[1].event(&event);
        assert_eq!(object.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(object.regarding.unwrap().uid.as_deref(), Some("u-1"));
        assert_eq!(object.related.unwrap().name.as_deref(), Some("node-1"));
        assert_eq!(object.series.unwrap().count, 3);
        let none = KubernetesConfig { pods: false, nodes: false, ..KubernetesConfig::default() };
        assert!(of(&event, &none).is_empty());
    }

    #[test]
    fn names_follow_from_event_and_object_and_are_valid() {
        let (one, other) = (streaming(), Event { id: "event-2".to_owned(), ..streaming() });
        let names = |event: &Event| -> Vec<String> {
            of(event, &KubernetesConfig::default()).iter().map(|told| told.name(event)).collect()
        };
        assert_eq!(names(&one), names(&one));
        assert_ne!(names(&one), names(&other));
        for node in ["", "Node_1.Example", "..", "é", &"n".repeat(400)] {
            let event = Event { node: node.to_owned(), pods: vec![pod("u")], ..streaming() };
            for name in names(&event) {
                let good =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
                assert!(name.len() <= NAME_MAX && name.bytes().all(good), "{name}");
                assert!(name.starts_with(|first: char| first.is_ascii_alphanumeric()), "{name}");
            }
        }
    }

    #[test]
    fn texts_are_within_the_limits_of_the_api() {
        let mut event = event(EventKind::Denied, "not-eligible", &"ä".repeat(5_000));
        event.node = "n".repeat(400);
        event.service = "a service".to_owned();
        let object = of(&event, &KubernetesConfig::default())[0].event(&event);
        let note = object.note.unwrap();
        assert!(note.len() <= NOTE_MAX && note.starts_with("Image r.io/app:1 is pulled without streaming"));
        assert_eq!(object.reporting_instance.unwrap().len(), WORD_MAX);
        assert_eq!(object.reporting_controller.as_deref(), Some("sluice.dev/sluice"));
        assert_eq!(object.type_.as_deref(), Some("Warning"));
    }

    #[test]
    fn every_kind_has_its_words_or_is_of_no_object() {
        let reason = |kind| words(kind).map(|words| words.reason);
        assert_eq!(reason(EventKind::Complete), Some("ImageStreamingComplete"));
        assert_eq!(reason(EventKind::Fallback), Some("ImageStreamingFallback"));
        assert_eq!(reason(EventKind::Denied), Some("ImageStreamingDenied"));
        assert_eq!(reason(EventKind::Degraded), Some("ImageStreamingDegraded"));
        assert_eq!(reason(EventKind::Quota), Some("QuotaExceeded"));
        assert_eq!(reason(EventKind::PolicyFailed), Some("PolicyPluginFailed"));
        assert_eq!(reason(EventKind::Importing), Some("ImageImporting"));
        assert_eq!(reason(EventKind::PolicySet), None);
    }
}
