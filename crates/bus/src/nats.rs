//! The bus over NATS: one connection, queue subscriptions, core request and reply.
//!
//! The loop of a subscription only takes a message and hands it on; it never waits for a handler.
//! Whatever happens to the connection, it is made again, without end.

mod counters;
mod disturbances;
mod lease;
pub(crate) mod stream;
mod table;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use nkeys::KeyPair;
use proto::{Refusal, speaker};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::endpoint::Endpoint;
use crate::stream::Outgoing;
use crate::{GATHERED_MAX, Share, Undelivered, wire};
use disturbances::{Disturbances, WhenBack};

pub(crate) use counters::NatsCounters;
pub(crate) use table::NatsTable;

/// Requests that may wait in one subscription: at a megabyte each at worst, and mostly a kilobyte.
/// The loop empties it at once; beyond it NATS drops, and the caller's deadline ends the wait.
const SUBSCRIPTION_MESSAGES_MAX: usize = 256;
/// A dead connection is noticed after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How long a stopping subscription waits for what the server had already sent.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// All who answer a subject share one queue.
const QUEUE: &str = "sluice";
/// For a request that names no deadline, which none of ours does.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// Where servers take accounts, and how long that may take.
const UPDATE_ACCOUNT: &str = "$SYS.REQ.CLAIMS.UPDATE";
const UPDATE_MAX: Duration = Duration::from_secs(5);
/// How each inbox begins: nobody has a reply sent anywhere else.
const INBOX: &str = "_INBOX";

/// Where the NATS servers are and how to log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsConfig {
    /// Servers of one cluster, separated by commas.
    pub url: String,
    /// How this connection is named in the server's reports.
    pub name: String,
    /// A file that holds an nkey seed.
    pub nkey_seed_file: Option<PathBuf>,
    /// A file with a JWT and its seed, as `nsc` writes it.
    pub credentials_file: Option<PathBuf>,
    /// PEM certificates to trust. When set, the connection must use TLS.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate and key to show to the server; both or neither.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// How the inbox for replies begins, as the user's permissions have it; with credentials the user's key follows.
    pub inbox_prefix: Option<String>,
    /// Of a node: its name, and the projects that it may speak for, as its user has them; the first where a request names none.
    pub node: Option<String>,
    pub projects: Vec<String>,
    /// Speak to other machines without TLS: for networks that nobody else can reach.
    pub insecure: bool,
    /// Copies that a cluster keeps of what JetStream holds: leases, counters, tables, events.
    pub replicas: usize,
}

/// A connection that is shared by all clones.
#[derive(Clone)]
pub(crate) struct Nats {
    client: Client,
    /// The servers' addresses, without passwords.
    servers: Arc<str>,
    disturbances: Arc<Disturbances>,
    /// Of a node's user, who may ask on no other subjects.
    own: Option<Arc<Own>>,
    replicas: usize,
    leases: Arc<OnceCell<async_nats::jetstream::kv::Store>>,
    jetstream: Arc<OnceLock<async_nats::jetstream::Context>>,
}

/// A node, as its subjects end.
#[derive(Debug)]
struct Own {
    node: String,
    projects: Vec<String>,
}

impl Default for NatsConfig {
    fn default() -> NatsConfig {
        NatsConfig {
            url: "nats://127.0.0.1:4222".to_owned(),
            name: "sluice".to_owned(),
            nkey_seed_file: None,
            credentials_file: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            inbox_prefix: None,
            node: None,
            projects: vec![speaker::DEFAULT_PROJECT.to_owned()],
            insecure: false,
            replicas: 1,
        }
    }
}

impl Nats {
    pub(crate) async fn connect(config: &NatsConfig) -> anyhow::Result<Nats> {
        // A process that links two providers of cryptography has no default one, and TLS would panic. An error
        // says that the process has chosen already.
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let servers: Vec<&str> = config.url.split(',').map(str::trim).collect();
        check_secured(config, &servers)?;
        // The address may carry a password: the error does not repeat it.
        let shown: Vec<String> = servers.iter().map(|server| without_login(server)).collect();
        let disturbances: Arc<Disturbances> = Arc::default();
        let options = options(config, disturbances.clone())?;
        let client = options.connect(servers).await.context("connecting to NATS (nats.url)")?;
        let servers = shown.join(", ").into();
        let own = config
            .node
            .as_ref()
            .map(|node| Arc::new(Own { node: node.clone(), projects: config.projects.clone() }));
        let (replicas, leases, jetstream) = (config.replicas, Arc::default(), Arc::default());
        Ok(Nats { client, servers, disturbances, own, replicas, leases, jetstream })
    }

    /// The subject on which this process asks or tells `subject`; `project`: of what is asked, where it names one. A server says nothing to
    /// whoever asks where it may not, so that is said here.
    pub(crate) fn own_subject(&self, subject: &str, project: Option<&str>) -> Result<String, Status> {
        let Some(own) = &self.own else { return Ok(subject.to_owned()) };
        let first = own.projects.first().map_or(speaker::DEFAULT_PROJECT, String::as_str);
        let project = project.filter(|project| !project.is_empty()).unwrap_or(first);
        if !own.projects.iter().any(|own| own == project) {
            let node = &own.node;
            return Err(
                Refusal::Denied.status(format!("node {node:?} does not speak for project {project:?}"))
            );
        }
        Ok(speaker::subject(subject, &speaker::token(project), &speaker::token(&own.node)))
    }

    pub(crate) fn connected(&self) -> Result<(), String> {
        if self.client.connection_state() == State::Connected {
            return Ok(());
        }
        let last = self.disturbances.last();
        let last = last.as_ref().map(|event| format!(" ({event})")).unwrap_or_default();
        Err(format!("no connection to NATS at {} (nats.url){last}", self.servers))
    }

    /// Waits for the first sign of a server.
    pub(crate) async fn answers_within(&self, wait: Duration) -> anyhow::Result<()> {
        let flushed = tokio::time::timeout(wait, self.client.flush()).await;
        flushed.with_context(|| format!("no server answered within {wait:?}"))?.context("ask the server")
    }

    pub(crate) async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Undelivered> {
        let request =
            async_nats::Request::new().payload(payload).headers(waiting(deadline)).timeout(Some(deadline));
        let reply = self.client.send_request(subject.to_owned(), request).await.map_err(|error| {
            Undelivered::Status(match error.kind() {
                RequestErrorKind::NoResponders => return Undelivered::NoResponder,
                RequestErrorKind::TimedOut => wire::deadline_exceeded(subject, deadline),
                RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                    Status::invalid_argument(format!("asking {subject}: {error}"))
                }
                RequestErrorKind::Other => Status::unavailable(format!("asking {subject}: {error}")),
            })
        })?;
        match is_error(&reply) {
            true => Err(Undelivered::Status(wire::decode_status(reply.payload))),
            false => Ok(reply.payload),
        }
    }

    /// The replies of everyone who listens on `subject`, as far as they come within `wait`.
    pub(crate) async fn gather(
        &self,
        subject: &str,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Vec<Bytes>, Status> {
        let failed =
            |error: &dyn std::fmt::Display| Status::unavailable(format!("asking {subject}: {error}"));
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
        let asked = subject.to_owned();
        let sent = self.client.publish_with_reply_and_headers(asked, inbox, waiting(wait), payload).await;
        sent.map_err(|error| failed(&error))?;
        let mut gathered = Vec::new();
        let collect = async {
            while let Some(reply) = replies.next().await {
                if reply.status.is_some() || gathered.len() == GATHERED_MAX {
                    break;
                }
                if !is_error(&reply) {
                    gathered.push(reply.payload);
                }
            }
        };
        // Nobody knows how many there are: what came in time is the answer.
        let _ = tokio::time::timeout(wait, collect).await;
        Ok(gathered)
    }

    /// Has `when_back` told for how long the connection was lost, each time it is back. The first one that is given stays.
    pub(crate) fn when_back(&self, when_back: WhenBack) {
        // There is one caller.
        let _ = self.disturbances.when_back.set(when_back);
    }

    /// Publishes for those who listen; no stream is waited for.
    pub(crate) async fn tell(&self, message: Outgoing) {
        let Outgoing { subject, id, headers, payload } = message;
        let mut all = HeaderMap::new();
        headers.into_iter().for_each(|(name, value)| all.insert(name, value));
        // A stream that is there all the same keeps it once.
        all.insert(NATS_MESSAGE_ID, id);
        if let Err(error) = self.client.publish_with_headers(subject, all, payload).await {
            tracing::debug!(%error, "publishing failed");
        }
    }

    /// Best effort: while the server is away, messages wait in the client's bounded buffer, then here.
    pub(crate) async fn publish(&self, subject: String, payload: Bytes) {
        if let Err(error) = self.client.publish(subject, payload).await {
            tracing::debug!(%error, "publishing failed");
        }
    }

    /// Like [`Nats::publish`], and waits until it was written to the server, so that the client's buffer never holds
    /// more than one of these.
    pub(crate) async fn hand_over(&self, subject: &'static str, payload: Bytes) {
        if let Ok(subject) = self.own_subject(subject, None) {
            self.publish(subject, payload).await;
        }
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "publishing failed");
        }
    }

    /// All that is published on `subject`, which may be a pattern, from when this returns.
    pub(crate) async fn subscribe(&self, subject: String) -> anyhow::Result<Subscriber> {
        let subscriber = self.client.subscribe(subject.clone()).await;
        let subscriber = subscriber.with_context(|| format!("subscribing to {subject}"))?;
        self.settle(&subject).await?;
        Ok(subscriber)
    }

    async fn queue_subscribe(&self, subject: String) -> anyhow::Result<Subscriber> {
        let subscriber = self.client.queue_subscribe(subject.clone(), QUEUE.to_owned()).await;
        let subscriber = subscriber.with_context(|| format!("subscribing to {subject}"))?;
        self.settle(&subject).await?;
        Ok(subscriber)
    }

    /// Returns when the server knows of a subscription. Without a server it is made as soon as there is one.
    async fn settle(&self, subject: &str) -> anyhow::Result<()> {
        if self.client.connection_state() == State::Connected {
            self.client.flush().await.with_context(|| format!("subscribing to {subject}"))?;
        }
        Ok(())
    }

    /// Feeds `endpoint` until `stop`; requests arrive from when this returns.
    pub(crate) async fn listen(
        &self,
        subject: String,
        share: Share,
        endpoint: Arc<Endpoint>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let subscriber = match share {
            Share::Queue => self.queue_subscribe(subject).await?,
            Share::All => self.subscribe(subject).await?,
        };
        let client = self.client.clone();
        endpoint.tasks().spawn(async move { feed(subscriber, client, endpoint, stop).await });
        Ok(())
    }
}

fn waiting(deadline: Duration) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(wire::DEADLINE_HEADER, deadline.as_millis().to_string());
    headers
}

fn is_error(reply: &Message) -> bool {
    reply.headers.as_ref().is_some_and(|headers| headers.get(wire::STATUS_HEADER).is_some())
}

fn options(config: &NatsConfig, disturbances: Arc<Disturbances>) -> anyhow::Result<ConnectOptions> {
    let mut options = match &config.credentials_file {
        None => ConnectOptions::new(),
        Some(path) => {
            // Whether they can be used is said now; what they are is read for each connection, as they are renewed.
            authenticate(path, &[])?;
            let path = path.clone();
            ConnectOptions::with_auth_callback(move |nonce| {
                let answer = authenticate(&path, &nonce);
                std::future::ready(answer.map_err(|error| AuthError::new(format!("{error:#}"))))
            })
        }
    };
    options = options
        .name(&config.name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .event_callback(move |event| {
            log(&event);
            disturbances.note(&event);
            std::future::ready(())
        });
    if let Some(path) = &config.nkey_seed_file {
        options = options.nkey(read(path)?.trim().to_owned());
    }
    if let Some(prefix) = &config.inbox_prefix {
        let user = match &config.credentials_file {
            Some(path) => format!(".{}", key_pair(path)?.public_key()),
            None => String::new(),
        };
        options = options.custom_inbox_prefix(format!("{prefix}{user}"));
    }
    let pair = match (&config.certificate_file, &config.key_file) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => anyhow::bail!("NATS: certificate_file and key_file need each other"),
    };
    match (&config.ca_file, pair) {
        (Some(ca), pair) => Ok(options.tls_client_config(tls::nats_config(ca, pair)?).require_tls(true)),
        (None, Some((certificate, key))) => {
            Ok(options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true))
        }
        (None, None) => Ok(options),
    }
}

/// Tells running servers what an account is from now on, as a user of their system account.
pub async fn update_account(config: &NatsConfig, jwt: String) -> anyhow::Result<()> {
    let nats = Nats::connect(config).await?;
    nats.answers_within(UPDATE_MAX).await?;
    let asked = nats.client.request(UPDATE_ACCOUNT, jwt.into());
    let reply =
        tokio::time::timeout(UPDATE_MAX, asked).await.context("no server took the account in time")?;
    let reply: serde_json::Value =
        serde_json::from_slice(&reply.context("no server took the account")?.payload)
            .context("reading what a server says of the account")?;
    anyhow::ensure!(reply.get("error").is_none(), "a server refused the account: {}", reply["error"]);
    Ok(())
}

/// Without TLS only this machine, unless it is said that no other can listen.
fn check_secured(config: &NatsConfig, servers: &[&str]) -> anyhow::Result<()> {
    let secured = |server: &str| {
        config.ca_file.is_some() || config.certificate_file.is_some() || server.starts_with("tls://")
    };
    let open = servers.iter().find(|server| !secured(server) && !tls::is_this_machine(server));
    match open {
        None => Ok(()),
        Some(_) if config.insecure => {
            tls::report_insecure("nats");
            Ok(())
        }
        Some(server) => {
            let address = without_login(server);
            Err(tls::Error::Insecure { what: "NATS", section: "nats", address }.into())
        }
    }
}

/// What a server is shown, for its `nonce`.
fn authenticate(path: &Path, nonce: &[u8]) -> anyhow::Result<Auth> {
    let credentials = read(path)?;
    let jwt = between(&credentials, "USER JWT");
    let jwt =
        jwt.with_context(|| format!("reading NATS credentials {}: they hold no JWT", path.display()))?;
    let mut auth = Auth::new();
    auth.jwt = Some(jwt.to_owned());
    auth.signature = Some(key_pair(path)?.sign(nonce).context("signing for NATS")?);
    Ok(auth)
}

fn key_pair(path: &Path) -> anyhow::Result<KeyPair> {
    let reading = || format!("reading NATS credentials {}: they hold no usable seed", path.display());
    let credentials = read(path)?;
    KeyPair::from_seed(between(&credentials, "USER NKEY SEED").with_context(reading)?).with_context(reading)
}

/// The line after `BEGIN what`.
fn between<'a>(credentials: &'a str, what: &str) -> Option<&'a str> {
    let begin = format!("BEGIN {}{what}", if what.starts_with("USER JWT") { "NATS " } else { "" });
    let mut lines = credentials.lines().skip_while(|line| !line.contains(&begin));
    lines.nth(1).map(str::trim).filter(|line| !line.is_empty())
}

/// A server's address, for logs and reasons.
fn without_login(server: &str) -> String {
    let (scheme, rest) = server.split_once("://").map_or(("", server), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "NATS connection ended"),
        Event::Disconnected
        | Event::LameDuckMode
        | Event::SlowConsumer(_)
        | Event::ServerError(_)
        | Event::ClientError(_) => tracing::warn!(%event, "NATS connection disturbed"),
    }
}

async fn feed(mut subscriber: Subscriber, client: Client, endpoint: Arc<Endpoint>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            message = subscriber.next() => match message {
                Some(message) => accept(message, &client, &endpoint).await,
                None => return,
            },
        }
    }
    // What the server had sent before it learned of the end is still answered.
    let rest = async {
        subscriber.drain().await.ok();
        while let Some(message) = subscriber.next().await {
            accept(message, &client, &endpoint).await;
        }
    };
    if tokio::time::timeout(DRAIN_MAX, rest).await.is_err() {
        tracing::debug!("a NATS subscription was not drained in time");
    }
}

async fn accept(message: Message, client: &Client, endpoint: &Arc<Endpoint>) {
    let Some(inbox) = message.reply else {
        tracing::debug!(subject = %message.subject, "ignored a request that wants no reply");
        return;
    };
    let deadline = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get(wire::DEADLINE_HEADER))
        .and_then(|value| value.as_str().parse().ok())
        .map_or(DEADLINE_DEFAULT, Duration::from_millis);
    if !inbox.starts_with(INBOX) {
        tracing::warn!(subject = %message.subject, reply = %inbox, "ignored a request whose reply would be no reply");
        return;
    }
    let speaker = speaker::of_subject(&message.subject);
    let client = client.clone();
    let reply = move |outcome: Result<Bytes, Status>| async move {
        let sent = match outcome {
            Ok(payload) => client.publish(inbox, payload).await,
            Err(status) => {
                let mut headers = HeaderMap::new();
                headers.insert(wire::STATUS_HEADER, i32::from(status.code()).to_string());
                client.publish_with_headers(inbox, headers, wire::encode_status(&status)).await
            }
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "sending a reply failed");
        }
    };
    endpoint.accept(message.payload, speaker, deadline, reply).await;
}

impl std::fmt::Debug for Nats {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Nats").field("state", &self.client.connection_state()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(without_login("nats://user:p@ss@host:4222"), "nats://host:4222");
        assert_eq!(without_login("host:4222"), "host:4222");
    }
}
