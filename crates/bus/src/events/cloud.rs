//! Events as CloudEvents 1.0.
//!
//! On NATS in binary mode: the attributes are headers, `ce-` in front and percent-encoded, and the event itself, as protobuf, is
//! the data. Services of the mesh speak protobuf everywhere, so that a field that one of them does not know yet costs nothing; and
//! whoever routes by kind, node or image reads headers alone. Where an event leaves the mesh (files, webhooks, subjects of a
//! user's own) it is one JSON object in structured mode, which needs no schema.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message as _;
use proto::{Event, EventKind};
use serde::Serialize;

use crate::Outgoing;

const VERSION: &str = "1.0";
/// The last millisecond of the year 9999: RFC 3339 has no later one.
const MILLISECONDS_MAX: u64 = 253_402_300_799_999;

/// An event as one JSON object, as `sluice events --json` and sinks show it.
#[derive(Clone, Debug, Serialize)]
pub struct EventJson<'a> {
    pub id: &'a str,
    /// RFC 3339, in UTC.
    pub at: String,
    pub kind: &'static str,
    pub warning: bool,
    pub reason: &'a str,
    pub message: &'a str,
    pub service: &'a str,
    pub node: &'a str,
    pub image: &'a str,
    pub manifest_digest: &'a str,
    /// How often it happened since the event before of this kind, reason and image.
    pub count: u64,
    pub details: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodJson<'a>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PodJson<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
}

/// A CloudEvent in structured mode.
#[derive(Clone, Debug, Serialize)]
pub struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: String,
    #[serde(rename = "type")]
    kind: &'static str,
    time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    subject: &'a str,
    datacontenttype: &'static str,
    data: EventJson<'a>,
}

impl<'a> From<&'a Event> for EventJson<'a> {
    fn from(event: &'a Event) -> EventJson<'a> {
        let pod = |pod: &'a proto::Pod| PodJson { namespace: &pod.namespace, name: &pod.name, uid: &pod.uid };
        EventJson {
            id: &event.id,
            at: time(event),
            kind: event.kind().code(),
            warning: event.is_warning(),
            reason: &event.reason,
            message: &event.message,
            service: &event.service,
            node: &event.node,
            image: &event.image,
            manifest_digest: &event.manifest_digest,
            count: event.count,
            details: event.details.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            pods: event.pods.iter().map(pod).collect(),
        }
    }
}

impl<'a> From<&'a Event> for CloudEvent<'a> {
    fn from(event: &'a Event) -> CloudEvent<'a> {
        CloudEvent {
            specversion: VERSION,
            id: &event.id,
            source: source(event),
            kind: type_of(event.kind()),
            time: time(event),
            subject: subject(event),
            datacontenttype: "application/json",
            data: event.into(),
        }
    }
}

/// When it happened, as RFC 3339. A time that no calendar has is shown as the last one.
pub fn time(event: &Event) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(event.at_ms.min(MILLISECONDS_MAX)));
    humantime::format_rfc3339_millis(at.unwrap_or(UNIX_EPOCH)).to_string()
}

/// The type of CloudEvents of this kind. Stable: programs route by it.
pub fn type_of(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Unspecified => "dev.sluice.other.v1",
        EventKind::Streaming => "dev.sluice.image.streaming.v1",
        EventKind::Complete => "dev.sluice.image.complete.v1",
        EventKind::Fallback => "dev.sluice.image.fallback.v1",
        EventKind::Denied => "dev.sluice.image.denied.v1",
        EventKind::Quota => "dev.sluice.quota.exceeded.v1",
        EventKind::Degraded => "dev.sluice.image.degraded.v1",
        EventKind::PolicyFailed => "dev.sluice.policy.failed.v1",
        EventKind::PolicySet => "dev.sluice.policy.set.v1",
        EventKind::Importing => "dev.sluice.image.importing.v1",
        EventKind::Unjudged => "dev.sluice.image.unjudged.v1",
    }
}

/// The event as it crosses NATS.
pub(crate) fn outgoing(event: &Event) -> Outgoing {
    let mut headers = vec![
        ("ce-specversion", VERSION.to_owned()),
        ("ce-id", event.id.clone()),
        ("ce-source", source(event)),
        ("ce-type", type_of(event.kind()).to_owned()),
        ("ce-time", time(event)),
        ("ce-datacontenttype", "application/protobuf".to_owned()),
    ];
    if !subject(event).is_empty() {
        headers.push(("ce-subject", subject(event).to_owned()));
    }
    headers.iter_mut().for_each(|(_, value)| *value = percent_encoded(value, in_header));
    let payload: Bytes = event.encode_to_vec().into();
    Outgoing { subject: event.subject(), id: event.id.clone(), headers, payload }
}

/// What the event is about: an image, if it is one's.
fn subject(event: &Event) -> &str {
    if event.image.is_empty() { &event.manifest_digest } else { &event.image }
}

/// A URI reference: where it happened.
fn source(event: &Event) -> String {
    let service = if event.service.is_empty() { "sluice" } else { &event.service };
    let service = percent_encoded(service, in_path);
    match event.node.is_empty() {
        true => format!("/services/{service}"),
        false => format!("/nodes/{}/{service}", percent_encoded(&event.node, in_path)),
    }
}

/// Printable ASCII, without what the binding for NATS excludes: space, double quote and percent.
fn in_header(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%'
}

/// The unreserved characters of a URI.
fn in_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn percent_encoded(text: &str, stays: fn(u8) -> bool) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match stays(byte) {
            true => encoded.push(char::from(byte)),
            // Writing into a string cannot fail.
            false => drop(write!(encoded, "%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            id: "0a".to_owned(),
            at_ms: 1_000,
            service: "frontend".to_owned(),
            node: "node 1/é".to_owned(),
            image: "r.io/a:1 \"100%\"\n".to_owned(),
            ..Event::new(EventKind::Fallback, "no-room", "why")
        }
    }

    #[test]
    fn headers_are_those_of_the_binding_and_values_are_encoded() {
        let message = outgoing(&event());
        let expected = [
            ("ce-specversion", "1.0"),
            ("ce-id", "0a"),
            ("ce-source", "/nodes/node%25201%252F%25C3%25A9/frontend"),
            ("ce-type", "dev.sluice.image.fallback.v1"),
            ("ce-time", "1970-01-01T00:00:01.000Z"),
            ("ce-datacontenttype", "application/protobuf"),
            ("ce-subject", "r.io/a:1%20%22100%25%22%0A"),
        ];
        let headers: Vec<_> = message.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(headers, expected);
        assert_eq!((message.subject.as_str(), message.id.as_str()), ("sluice.v1.event.fallback", "0a"));
        assert_eq!(Event::decode(message.payload).unwrap(), event());
        assert!(message.headers.iter().all(|(_, value)| value.bytes().all(|byte| byte.is_ascii_graphic())));
    }

    #[test]
    fn outside_the_mesh_it_is_one_json_object() {
        let pod =
            proto::Pod { namespace: "shop".to_owned(), name: "web-1".to_owned(), uid: "u-1".to_owned() };
        let event = Event { node: String::new(), pods: vec![pod], ..event() }.with("layer_id", "sha256:1");
        let json = serde_json::to_value(CloudEvent::from(&event)).unwrap();
        assert_eq!(json["source"], "/services/frontend");
        assert_eq!(json["type"], "dev.sluice.image.fallback.v1");
        assert_eq!(json["subject"], event.image.as_str());
        assert_eq!(json["data"]["pods"][0]["uid"], "u-1");
        assert_eq!(json["data"]["details"]["layer_id"], "sha256:1");
        let about_nothing = Event { image: String::new(), ..event };
        assert!(serde_json::to_value(CloudEvent::from(&about_nothing)).unwrap().get("subject").is_none());
    }

    #[test]
    fn a_time_that_no_calendar_has_is_shown() {
        assert_eq!(time(&Event { at_ms: u64::MAX, ..event() }), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn each_kind_has_a_type_of_its_own() {
        let kinds: Vec<EventKind> = (0..).map_while(|number| EventKind::try_from(number).ok()).collect();
        let types: std::collections::BTreeSet<_> = kinds.iter().map(|kind| type_of(*kind)).collect();
        assert_eq!(types.len(), kinds.len());
        assert!(types.iter().all(|name| name.starts_with("dev.sluice.") && name.ends_with(".v1")));
    }
}
