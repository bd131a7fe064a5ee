//! What an operator may set: how long events are kept, and where they are written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bus::{ConsumerConfig, NatsConfig, StreamConfig};
use bytesize::ByteSize;
use proto::EventKind;
use proto::subjects::EVENTS;
use serde::{Deserialize, Serialize};
use url::Url;

/// Where the mesh keeps its events.
const STREAM: &str = "SLUICE_EVENTS";
/// How long an event may be worked on without a word; it is prolonged while it is.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(30);
/// Events that a sink has and that are not acknowledged, of all replicas together.
const IN_FLIGHT_MAX: usize = 1024;
/// Until what a service that ends gives back is delivered to another one.
const GIVEN_BACK_FOR: Duration = Duration::from_secs(1);

/// The settings of the service as a process.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub lifecycle: lifecycle::Config,
    pub nats: NatsConfig,
    pub events: Config,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long an event is kept for sinks that are away; and how long it is tried to write it.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// How many bytes of events are kept: the oldest go first.
    pub max_bytes: ByteSize,
    /// An event that is published twice within this time is kept once.
    #[serde(with = "humantime_serde")]
    pub duplicate_window: Duration,
    /// By name. A sink goes on where the one of its name was.
    pub sinks: BTreeMap<String, SinkConfig>,
}

/// One of the destinations, and which events go there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkConfig {
    /// Only these kinds; empty: all.
    pub kinds: Vec<String>,
    pub file: Option<FileConfig>,
    /// Standard output, one JSON object a line.
    pub stdout: bool,
    pub webhook: Option<WebhookConfig>,
    pub nats: Option<NatsSinkConfig>,
    pub kubernetes: Option<KubernetesConfig>,
}

/// One JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileConfig {
    /// Made with mode 0600 when absent.
    pub path: PathBuf,
    /// How large it gets. Then it is renamed to `PATH.1`, what was there to `PATH.2` and so on, and a new one begun.
    pub size: ByteSize,
    /// How many files are kept, the one that is written included.
    pub files: u32,
}

/// A POST for each event, signed as Standard Webhooks describe it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookConfig {
    pub url: String,
    /// Secrets, one a line: `whsec_` and base64. With several each signs, so that a receiver may change over. Read again for each
    /// batch. Without a file nothing is signed.
    pub secret_file: Option<PathBuf>,
    /// For one request, its answer included.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Requests at the same time.
    pub concurrency: usize,
    /// Allow `http://` to other machines than this one.
    pub insecure: bool,
}

/// A subject of your own on the same NATS, one JSON object a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsSinkConfig {
    pub subject: String,
    /// A stream of yours must have stored the message before the event counts as written.
    pub kept: bool,
}

/// Events of Kubernetes, on the Node and on the Pods that pulled the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// Absent: as a pod of the cluster, with its service account.
    pub kubeconfig: Option<PathBuf>,
    pub nodes: bool,
    pub pods: bool,
    /// For one request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            max_age: Duration::from_secs(24 * 60 * 60),
            max_bytes: ByteSize::mib(256),
            duplicate_window: Duration::from_secs(120),
            sinks: BTreeMap::new(),
        }
    }
}

impl Default for FileConfig {
    fn default() -> FileConfig {
        FileConfig { path: PathBuf::new(), size: ByteSize::mib(64), files: 5 }
    }
}

impl Default for WebhookConfig {
    fn default() -> WebhookConfig {
        WebhookConfig {
            url: String::new(),
            secret_file: None,
            timeout: Duration::from_secs(10),
            concurrency: 8,
            insecure: false,
        }
    }
}

impl Default for KubernetesConfig {
    fn default() -> KubernetesConfig {
        KubernetesConfig { kubeconfig: None, nodes: true, pods: true, timeout: Duration::from_secs(10) }
    }
}

impl Config {
    /// Finds what cannot work before anything is started.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.max_age.is_zero(), "events.max_age is 0: nothing would be kept");
        ensure!(
            self.duplicate_window <= self.max_age,
            "events.duplicate_window is longer than events.max_age"
        );
        for (name, sink) in &self.sinks {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            ensure!(
                !name.is_empty() && name.bytes().all(good),
                "events.sinks.{name}: letters, digits, `-` and `_` expected in the name of a sink"
            );
            sink.check().with_context(|| format!("events.sinks.{name}"))?;
        }
        Ok(())
    }

    pub(crate) fn stream(&self) -> StreamConfig {
        StreamConfig {
            name: STREAM.to_owned(),
            // What stands behind the kind is who told it.
            subjects: vec![format!("{EVENTS}.>")],
            max_age: self.max_age,
            max_bytes: self.max_bytes.as_u64(),
            duplicate_window: self.duplicate_window,
        }
    }
}

impl SinkConfig {
    fn check(&self) -> anyhow::Result<()> {
        let destinations = [
            self.file.is_some(),
            self.stdout,
            self.webhook.is_some(),
            self.nats.is_some(),
            self.kubernetes.is_some(),
        ];
        let count = destinations.iter().filter(|set| **set).count();
        ensure!(
            count == 1,
            "exactly one of file, stdout, webhook, nats and kubernetes expected, not {count}"
        );
        for kind in &self.kinds {
            EventKind::from_code(kind).with_context(|| format!("kinds: {kind:?} is no kind of event"))?;
        }
        if let Some(file) = &self.file {
            ensure!(!file.path.as_os_str().is_empty(), "file.path is empty");
            ensure!(file.files > 0 && file.size.as_u64() > 0, "file.files and file.size must not be 0");
        }
        if let Some(webhook) = &self.webhook {
            webhook.check()?;
        }
        if let Some(nats) = &self.nats {
            nats.check()?;
        }
        if let Some(kubernetes) = &self.kubernetes {
            ensure!(kubernetes.nodes || kubernetes.pods, "kubernetes.nodes and kubernetes.pods are both off");
        }
        Ok(())
    }

    /// The sink's own place in the stream.
    pub(crate) fn consumer(&self, name: &str) -> ConsumerConfig {
        ConsumerConfig {
            name: format!("sink-{name}"),
            subjects: self.kinds.iter().flat_map(|kind| of_kind(kind)).collect(),
            ack_wait: ACK_WAIT,
            backoff: vec![GIVEN_BACK_FOR],
            max_in_flight: IN_FLIGHT_MAX,
        }
    }

    /// Where it writes, for people; without what may be secret.
    pub(crate) fn place(&self) -> String {
        if let Some(file) = &self.file {
            return file.path.display().to_string();
        }
        if let Some(webhook) = &self.webhook {
            let host = Url::parse(&webhook.url).ok().and_then(|url| url.host_str().map(str::to_owned));
            return format!("a webhook at {}", host.unwrap_or_default());
        }
        match (&self.nats, &self.kubernetes) {
            (Some(nats), _) => format!("NATS subject {}", nats.subject),
            (None, Some(_)) => "Kubernetes".to_owned(),
            (None, None) => "standard output".to_owned(),
        }
    }
}

/// Subjects of a kind: told by services, and by nodes, whose names follow.
fn of_kind(kind: &str) -> [String; 2] {
    [format!("{EVENTS}.{kind}"), format!("{EVENTS}.{kind}.>")]
}

impl WebhookConfig {
    fn check(&self) -> anyhow::Result<()> {
        // The address itself may be a secret.
        let url =
            Url::parse(&self.url).map_err(|error| anyhow::anyhow!("webhook.url is no address: {error}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            bail!("webhook.url holds a password: requests are signed instead (webhook.secret_file)");
        }
        let local = match url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        match url.scheme() {
            "https" => {}
            "http" if local || self.insecure => {}
            "http" => {
                bail!("webhook.url is not encrypted: use https, or allow it by webhook.insecure = true")
            }
            other => bail!("webhook.url begins with {other}: https expected"),
        }
        ensure!((1..=256).contains(&self.concurrency), "webhook.concurrency is not between 1 and 256");
        ensure!(!self.timeout.is_zero(), "webhook.timeout is 0");
        Ok(())
    }
}

impl NatsSinkConfig {
    fn check(&self) -> anyhow::Result<()> {
        let subject = &self.subject;
        let token = |token: &str| {
            !token.is_empty()
                && token.chars().all(|letter| letter.is_ascii_graphic() && !matches!(letter, '*' | '>'))
        };
        ensure!(subject.split('.').all(token), "nats.subject is {subject:?}: words between dots expected");
        let own = subject == "sluice" || subject.starts_with("sluice.") || subject.starts_with('$');
        ensure!(!own, "nats.subject is {subject:?}: subjects of the mesh and of NATS itself are not yours");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(toml: &str) -> anyhow::Result<Config> {
        let assignment = ("events".to_owned(), toml.to_owned());
        let settings: Settings = lifecycle::config::load_from(&[], Vec::new(), vec![assignment])?;
        settings.events.check()?;
        Ok(settings.events)
    }

    #[test]
    fn sinks_are_read_from_one_line_each() {
        let config = parse(
            r#"{ max_age = "2h", sinks = {
                audit = { file = { path = "/var/log/sluice/events.json", size = "1MiB", files = 3 } },
                alerts = { kinds = ["denied", "degraded"], webhook = { url = "https://example.com/hook" } },
                cluster = { kubernetes = {} }, ours = { nats = { subject = "ops.sluice", kept = true } } } }"#
                .replace('\n', " ")
                .as_str(),
        )
        .unwrap();
        assert_eq!((config.max_age, config.sinks.len()), (Duration::from_secs(7200), 4));
        let alerts = config.sinks["alerts"].consumer("alerts");
        let expected = [of_kind("denied"), of_kind("degraded")].concat();
        assert_eq!(alerts.subjects, expected);
        assert_eq!(expected[1], "sluice.v1.event.denied.>");
        assert!(config.sinks["audit"].consumer("audit").subjects.is_empty());
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (sink, complaint) in [
            ("{}", "exactly one of"),
            ("{ stdout = true, kubernetes = {} }", "exactly one of"),
            (r#"{ stdout = true, kinds = ["steaming"] }"#, "\"steaming\" is no kind"),
            (r#"{ file = { path = "" } }"#, "file.path is empty"),
            (r#"{ webhook = { url = "http://example.com/" } }"#, "not encrypted"),
            (r#"{ webhook = { url = "https://user:hunter2@example.com/" } }"#, "holds a password"),
            (r#"{ webhook = { url = "example.com" } }"#, "no address"),
            (r#"{ webhook = { url = "ftp://example.com" } }"#, "begins with ftp"),
            (r#"{ nats = { subject = "sluice.v1.event.denied" } }"#, "are not yours"),
            (r#"{ nats = { subject = "a.*" } }"#, "words between dots"),
            ("{ kubernetes = { nodes = false, pods = false } }", "both off"),
            ("{ strout = true }", "strout"),
        ] {
            let error = format!("{:#}", parse(&format!("{{ sinks = {{ it = {sink} }} }}")).unwrap_err());
            assert!(error.contains(complaint), "{sink}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let named = parse(r#"{ sinks = { "a.b" = { stdout = true } } }"#);
        assert!(format!("{:#}", named.unwrap_err()).contains("a.b"));
        assert!(parse(r#"{ sinks = { it = { webhook = { url = "http://127.0.0.1:1/" } } } }"#).is_ok());
    }

    #[test]
    fn a_place_is_shown_without_secrets() {
        let webhook = WebhookConfig {
            url: "https://example.com/T0/secret?key=1".to_owned(),
            ..WebhookConfig::default()
        };
        let sink = SinkConfig { webhook: Some(webhook), ..SinkConfig::default() };
        assert_eq!(sink.place(), "a webhook at example.com");
    }
}
