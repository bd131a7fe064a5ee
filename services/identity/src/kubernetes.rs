//! Pods that enroll: which node one is on is asked of Kubernetes (TokenReview), never of the pod.
//!
//! A node's pod gets a projected token of our audience from its kubelet. The API server says whether the token counts, for which service
//! account, and on which node its pod is: since 1.32 in the review itself, before by way of the pod. A token of another audience, as every
//! pod has one for the API server, opens nothing here, and ours opens nothing there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use names::Project;
use serde::{Deserialize, Serialize};

/// How Kubernetes names a service account among users: `system:serviceaccount:NAMESPACE:NAME`.
const ACCOUNT: &str = "system:serviceaccount:";
const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The `identity.kubernetes` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Of tokens that are for this service alone.
    pub audience: String,
    /// `NAMESPACE/NAME` of the accounts whose pods are nodes of the mesh.
    pub service_accounts: Vec<String>,
    /// That these nodes may speak for.
    pub projects: Vec<Project>,
    /// Absent: as a pod of the cluster, with its service account.
    pub kubeconfig: Option<PathBuf>,
    /// For one request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// Asks Kubernetes about tokens.
pub(crate) struct Reviewer {
    config: Config,
    client: Client,
}

/// Why a token opens nothing. What is told to who asks does not say which, but for the last.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("Kubernetes does not know it: {0}")]
    Unknown(String),
    #[error("it is of another audience")]
    Audience,
    #[error("it is of {0}, whose pods are no nodes (identity.kubernetes.service_accounts)")]
    Account(String),
    #[error("it is of no pod that is on a node")]
    NoNode,
    #[error("it is of a pod on {0}, and another node was asked for")]
    OtherNode(String),
    #[error("Kubernetes cannot be asked: {0}")]
    Unreachable(String),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            audience: "sluice.dev".to_owned(),
            service_accounts: Vec::new(),
            projects: vec![Project::default()],
            kubeconfig: None,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.audience.is_empty(), "audience is empty: tokens for everything would count");
        ensure!(!self.service_accounts.is_empty(), "service_accounts is empty: no pod could enroll");
        for account in &self.service_accounts {
            let parts = account.split_once('/');
            let good = parts.is_some_and(|(namespace, name)| {
                !namespace.is_empty() && !name.is_empty() && !account.contains(':') && !name.contains('/')
            });
            ensure!(good, "service_accounts: {account:?}: NAMESPACE/NAME expected");
        }
        ensure!(!self.projects.is_empty(), "projects is empty: nodes could speak for none");
        ensure!(!self.timeout.is_zero(), "timeout is 0");
        Ok(())
    }
}

impl Reviewer {
    pub(crate) async fn new(config: Config) -> anyhow::Result<Reviewer> {
        config.check()?;
        let mut client = match &config.kubeconfig {
            Some(path) => {
                let reading = || format!("kubeconfig {}", path.display());
                let file = Kubeconfig::read_from(path).with_context(reading)?;
                let options = KubeConfigOptions::default();
                ClientConfig::from_custom_kubeconfig(file, &options).await.with_context(reading)?
            }
            None => ClientConfig::incluster()
                .context("no pod of a cluster (set kubeconfig, or mount a service account)")?,
        };
        client.connect_timeout = Some(config.timeout);
        // Whoever enrolls asks again.
        client.default_retry = false;
        let client = Client::try_from(client).context("making a client of Kubernetes")?;
        Ok(Reviewer { config, client })
    }

    /// The node that the token's pod is on. `wanted`: what it must be; empty: whatever it is.
    pub(crate) async fn node(&self, token: &str, wanted: &str) -> Result<String, Refused> {
        let reviewed = tokio::time::timeout(self.config.timeout, self.review(token)).await;
        let user = reviewed.map_err(|_| Refused::Unreachable("it did not answer in time".to_owned()))??;
        let (namespace, account) = account_of(&user)?;
        let full = format!("{namespace}/{account}");
        if !self.config.service_accounts.contains(&full) {
            return Err(Refused::Account(full));
        }
        let asked = tokio::time::timeout(self.config.timeout, self.node_of(&user, namespace)).await;
        let node = asked.map_err(|_| Refused::Unreachable("it did not answer in time".to_owned()))??;
        match wanted.is_empty() || wanted == node {
            true => Ok(node),
            false => Err(Refused::OtherNode(node)),
        }
    }

    pub(crate) fn projects(&self) -> Vec<String> {
        self.config.projects.iter().map(ToString::to_string).collect()
    }

    async fn review(&self, token: &str) -> Result<UserInfo, Refused> {
        let spec = TokenReviewSpec {
            audiences: Some(vec![self.config.audience.clone()]),
            token: Some(token.to_owned()),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed =
            reviews.create(&PostParams::default(), &review).await.map_err(|error| unreachable(&error))?;
        let status = reviewed.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(Refused::Unknown(status.error.unwrap_or_default()));
        }
        // A server that knows no audiences leaves them out, and has looked at none.
        if !status.audiences.is_some_and(|audiences| audiences.contains(&self.config.audience)) {
            return Err(Refused::Audience);
        }
        Ok(status.user.unwrap_or_default())
    }

    /// As the review says it, else as the pod does, if it is still that pod.
    async fn node_of(&self, user: &UserInfo, namespace: &str) -> Result<String, Refused> {
        let extra = user.extra.clone().unwrap_or_default();
        if let Some(node) = one(&extra, NODE) {
            return Ok(node.to_owned());
        }
        let (name, uid) = one(&extra, POD).zip(one(&extra, POD_UID)).ok_or(Refused::NoNode)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = pods.get_opt(name).await.map_err(|error| unreachable(&error))?.ok_or(Refused::NoNode)?;
        if pod.metadata.uid.as_deref() != Some(uid) {
            return Err(Refused::NoNode);
        }
        pod.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty()).ok_or(Refused::NoNode)
    }
}

fn account_of(user: &UserInfo) -> Result<(&str, &str), Refused> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT).and_then(|account| account.split_once(':'));
    account.ok_or_else(|| Refused::Account(name.chars().take(100).collect()))
}

/// What is said once, and of something.
fn one<'a>(extra: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a str> {
    let [value] = extra.get(key)?.as_slice() else { return None };
    Some(value.as_str()).filter(|value| !value.is_empty())
}

/// The error's text has what was asked for and the server's answer, never the token.
fn unreachable(error: &kube::Error) -> Refused {
    Refused::Unreachable(error.to_string().chars().take(300).collect())
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reviewer").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        let good = Config { service_accounts: vec!["sluice/node".to_owned()], ..Config::default() };
        good.check().unwrap();
        for (config, complaint) in [
            (Config { audience: String::new(), ..good.clone() }, "audience is empty"),
            (Config::default(), "service_accounts is empty"),
            (Config { service_accounts: vec!["node".to_owned()], ..good.clone() }, "NAMESPACE/NAME"),
            (Config { service_accounts: vec!["a/b/c".to_owned()], ..good.clone() }, "NAMESPACE/NAME"),
            (Config { projects: Vec::new(), ..good.clone() }, "projects is empty"),
            (Config { timeout: Duration::ZERO, ..good }, "timeout is 0"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn users_that_are_no_service_accounts_are_none() {
        let of = |name: &str| {
            let user = UserInfo { username: Some(name.to_owned()), ..UserInfo::default() };
            account_of(&user).map(|(namespace, name)| format!("{namespace}/{name}")).ok()
        };
        assert_eq!(of("system:serviceaccount:sluice:node").as_deref(), Some("sluice/node"));
        for wrong in ["", "admin", "system:node:n1", "system:serviceaccount:sluice"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
