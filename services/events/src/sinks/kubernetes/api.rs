//! The two requests that are made of an API server, and what its answers mean.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use http::header::RETRY_AFTER;
use http::{Method, Request, StatusCode};
use k8s_openapi::api::events::v1::Event;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use serde::Serialize;

use crate::backoff;
use crate::config::KubernetesConfig;

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";
/// Of a server's explanation, in characters.
const WHY_MAX: usize = 300;
/// Why nothing can be made in a namespace that is going.
const TERMINATING: &str = "NamespaceTerminating";

#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    timeout: Duration,
}

#[derive(Debug)]
pub(super) enum Answer {
    /// It is there; perhaps it was before.
    Done,
    /// What was to be changed is not there.
    Gone,
    Never(String),
    Again {
        why: String,
        after: Option<Duration>,
    },
}

impl Api {
    pub(super) async fn connect(config: &KubernetesConfig) -> anyhow::Result<Api> {
        let mut client = match &config.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("kubernetes.kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("kubernetes.kubeconfig {}", path.display()))?
            }
            None => Config::incluster()
                .context("no pod of a cluster (set kubernetes.kubeconfig, or mount a service account)")?,
        };
        client.connect_timeout = Some(config.timeout);
        // Attempts are made here, with what the server asks for.
        client.default_retry = false;
        let client = Client::try_from(client).context("making a client of Kubernetes")?;
        Ok(Api { client, timeout: config.timeout })
    }

    pub(super) async fn create(&self, event: &Event) -> Answer {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldManager=sluice");
        match self.send(Method::POST, &path, JSON, event).await {
            Ok(StatusCode::CONFLICT) => Answer::Done,
            Ok(StatusCode::NOT_FOUND) => Answer::Never(format!("there is no namespace {namespace}")),
            Ok(_) => Answer::Done,
            Err(answer) => answer,
        }
    }

    pub(super) async fn patch(&self, namespace: &str, name: &str, patch: &impl Serialize) -> Answer {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}?fieldManager=sluice");
        match self.send(Method::PATCH, &path, MERGE, patch).await {
            Ok(StatusCode::NOT_FOUND) => Answer::Gone,
            Ok(StatusCode::CONFLICT) => {
                Answer::Again { why: "the event is being changed by others".to_owned(), after: None }
            }
            Ok(_) => Answer::Done,
            Err(answer) => answer,
        }
    }

    /// The answer's status, where it is a success, 404 or 409.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: &impl Serialize,
    ) -> Result<StatusCode, Answer> {
        let again = |why: String| Answer::Again { why, after: None };
        let body = serde_json::to_vec(body).map_err(|error| Answer::Never(error.to_string()))?;
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        let request =
            request.body(Body::from(body)).map_err(|error| Answer::Never(format!("{path}: {error}")))?;
        let asked = async {
            let response = self.client.send(request).await?;
            let (head, body) = response.into_parts();
            let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|value| backoff::asked(value, SystemTime::now()));
            let told = body.collect_bytes().await?;
            Ok::<_, kube::Error>((head.status, after, told))
        };
        let answered = tokio::time::timeout(self.timeout, asked).await;
        let answered = answered
            .map_err(|_| again(format!("the API server did not answer within {:?}", self.timeout)))?;
        let (status, after, told) =
            answered.map_err(|error| again(format!("the API server: {}", root_cause(&error))))?;
        if status.is_success() || matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT) {
            return Ok(status);
        }
        let told: Status = serde_json::from_slice(&told).unwrap_or_default();
        let message: String = told.message.chars().take(WHY_MAX).collect();
        let why = format!("the API server answered {status}: {message}");
        let details = told.details.as_ref();
        let terminating =
            details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == TERMINATING));
        let said = details.map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
        let said = said.map(|seconds| Duration::from_secs(seconds.into()));
        Err(match status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Answer::Never(why),
            StatusCode::FORBIDDEN if terminating => Answer::Never(why),
            // Rights that are missing may be given: nothing is lost until then.
            _ => Answer::Again { why, after: after.or(said) },
        })
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
