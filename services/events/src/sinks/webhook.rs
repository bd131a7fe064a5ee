//! A webhook: a POST for each event, its body a CloudEvent in structured mode, signed.
//!
//! A receiver knows an event again by `webhook-id`, which is the event's own id: what was sent when a process died, or whose answer
//! got lost, is sent again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures::future::{BoxFuture, join_all};
use proto::Event;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};

use super::signature::Secrets;
use super::{Outcome, Sink, json};
use crate::backoff;
use crate::config::WebhookConfig;

const CLOUD_EVENT: &str = "application/cloudevents+json; charset=utf-8";

pub(super) struct Webhook {
    client: Client,
    url: String,
    secret_file: Option<PathBuf>,
    concurrency: usize,
}

impl Webhook {
    pub(super) fn new(config: &WebhookConfig) -> anyhow::Result<Webhook> {
        let WebhookConfig { url, secret_file, timeout, concurrency, .. } = config;
        if let Some(Err(error)) = secret_file.as_deref().map(Secrets::read) {
            tracing::warn!(
                error = format!("{error:#}"),
                "a webhook's events cannot be signed yet: none is sent"
            );
        }
        let client = Client::builder()
            // Where else a receiver may send us is not what was configured.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(*timeout)
            .connect_timeout(*timeout)
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("making an HTTP client")?;
        let (url, secret_file) = (url.clone(), secret_file.clone());
        Ok(Webhook { client, url, secret_file, concurrency: *concurrency })
    }

    async fn secrets(&self) -> anyhow::Result<Secrets> {
        let Some(file) = self.secret_file.clone() else { return Ok(Secrets::default()) };
        tokio::task::spawn_blocking(move || Secrets::read(&file)).await.context("reading the secrets")?
    }

    async fn post(&self, event: &Event, secrets: Arc<Secrets>) -> Outcome {
        let body = json(event);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut request = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, CLOUD_EVENT)
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", now);
        if let Some(signature) = secrets.sign(&event.id, now, &body) {
            request = request.header("webhook-signature", signature);
        }
        match request.body(body).send().await {
            Ok(response) => outcome(&response),
            // The address may be a secret.
            Err(error) => Outcome::again(format!("{:#}", anyhow::Error::new(error.without_url()))),
        }
    }
}

fn outcome(response: &Response) -> Outcome {
    let status = response.status();
    let why = || format!("the receiver answered {status}");
    if status.is_success() {
        return Outcome::Done;
    }
    match status {
        // This event, as it is, will not be taken.
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
            Outcome::Never { why: why() }
        }
        _ => {
            let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|value| backoff::asked(value, SystemTime::now()));
            Outcome::Again { why: why(), after }
        }
    }
}

impl Sink for Webhook {
    fn batch_max(&self) -> usize {
        self.concurrency
    }

    fn write<'a>(&'a mut self, events: &'a [Event]) -> BoxFuture<'a, Vec<Outcome>> {
        let this = &*self;
        Box::pin(async move {
            let secrets = match this.secrets().await {
                Ok(secrets) => Arc::new(secrets),
                Err(error) => return vec![Outcome::again(format!("{error:#}")); events.len()],
            };
            join_all(events.iter().map(|event| this.post(event, secrets.clone()))).await
        })
    }
}
