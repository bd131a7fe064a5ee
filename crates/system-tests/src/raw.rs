//! A connection to NATS as an attacker makes one: with an identity that counts, and with nothing of ours that keeps it from asking what it may not.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::header::HeaderMap;
use async_nats::{Client, ConnectOptions, Event, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use prost::Message as _;
use tonic::{Code, Status};

use crate::secured::nats_config;

/// Generous: nobody waits for it when all is well.
const WAIT: Duration = Duration::from_secs(30);
/// Subjects that are tried before their refusals are waited for: the client drops what it is told faster than it hands it on.
const AT_ONCE: usize = 16;

#[derive(Debug)]
pub struct Raw {
    client: Client,
    /// What the server said.
    refused: Arc<Mutex<Vec<String>>>,
    sentinels: usize,
    /// As this user's own begin.
    inbox: String,
    requests: usize,
    /// Kept: one that is dropped would be taken back before it was refused.
    subscribed: Vec<Subscriber>,
}

impl Raw {
    /// With the identity in this folder.
    pub async fn connect(folder: &Path) -> anyhow::Result<Raw> {
        let config = nats_config(folder)?;
        let refused: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = refused.clone();
        let (ca, certificate, key) = (config.ca_file, config.certificate_file, config.key_file);
        let (ca, certificate, key) =
            (ca.context("an authority")?, certificate.context("a certificate")?, key.context("a key")?);
        let credentials = std::fs::read_to_string(config.credentials_file.context("credentials")?)?;
        let inbox = config.inbox_prefix.context("an inbox")?;
        let inbox = format!("{inbox}.{}", identity::user_of(&credentials)?.key);
        let client = ConnectOptions::with_credentials(&credentials)?
            .require_tls(true)
            .tls_client_config(tls::nats_config(&ca, Some((&certificate, &key)))?)
            .event_callback(move |event| {
                if let Event::ServerError(error) = &event {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                }
                std::future::ready(())
            })
            .connect(config.url)
            .await?;
        Ok(Raw { client, refused, sentinels: 0, inbox, requests: 0, subscribed: Vec::new() })
    }

    /// How this user's own inboxes begin.
    pub fn inbox(&self) -> &str {
        &self.inbox
    }

    /// What the server lets through of what is told there.
    pub async fn listen(&self, subject: &str) -> anyhow::Result<Subscriber> {
        Ok(self.client.subscribe(subject.to_owned()).await?)
    }

    /// Those of the subjects that the server let it publish on.
    pub async fn published(&mut self, subjects: &[String]) -> anyhow::Result<Vec<String>> {
        for some in subjects.chunks(AT_ONCE) {
            for subject in some {
                self.client.publish(subject.clone(), "x".into()).await?;
            }
            self.settle().await?;
        }
        Ok(self.allowed("publish", subjects))
    }

    /// Those of the subjects that the server let it subscribe to.
    pub async fn heard(&mut self, subjects: &[String]) -> anyhow::Result<Vec<String>> {
        for some in subjects.chunks(AT_ONCE) {
            for subject in some {
                let subscriber = self.client.subscribe(subject.clone()).await?;
                self.subscribed.push(subscriber);
            }
            self.settle().await?;
        }
        Ok(self.allowed("subscription", subjects))
    }

    /// Bytes on a subject, with a place of its own for the answer, or another's.
    pub async fn send(&self, subject: &str, reply: &str, request: Bytes) -> anyhow::Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("Sluice-Deadline-Ms", WAIT.as_millis().to_string());
        let (subject, reply) = (subject.to_owned(), reply.to_owned());
        self.client.publish_with_reply_and_headers(subject, reply, headers, request).await?;
        Ok(self.client.flush().await?)
    }

    /// A question, and what was answered.
    pub async fn ask(&mut self, subject: &str, request: Bytes) -> anyhow::Result<Result<Bytes, Status>> {
        self.requests += 1;
        let inbox = format!("{}.raw{}", self.inbox, self.requests);
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        self.send(subject, &inbox, request).await?;
        let answer = tokio::time::timeout(WAIT, answers.next()).await;
        let message = answer.with_context(|| format!("no answer on {subject}"))?.context("an answer")?;
        let failed = message.headers.is_some_and(|headers| headers.get("Sluice-Status").is_some());
        if !failed {
            return Ok(Ok(message.payload));
        }
        let status = tonic_types::pb::Status::decode(message.payload.clone())?;
        let (code, text) = (Code::from(status.code), status.message);
        Ok(Err(Status::with_details(code, text, message.payload)))
    }

    /// Returns once everything before was taken or refused: by then the server has refused this as well.
    async fn settle(&mut self) -> anyhow::Result<()> {
        self.sentinels += 1;
        let sentinel = format!("nobody.{}", self.sentinels);
        self.client.publish(sentinel.clone(), "".into()).await?;
        self.client.flush().await?;
        let begun = std::time::Instant::now();
        while !self.said().iter().any(|text| mentions(text, &sentinel)) {
            ensure!(begun.elapsed() < WAIT, "the server does not refuse {sentinel}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    fn allowed(&self, kind: &str, subjects: &[String]) -> Vec<String> {
        let said = self.said();
        let refused = |subject: &String| {
            said.iter().any(|text| text.to_lowercase().contains(kind) && mentions(text, subject))
        };
        subjects.iter().filter(|subject| !refused(subject)).cloned().collect()
    }

    fn said(&self) -> Vec<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn mentions(text: &str, subject: &str) -> bool {
    text.to_lowercase().contains(&format!("\"{}\"", subject.to_lowercase()))
}
