//! The kubelet's image credential provider plugins: programs that are given an image's name and answer with credentials.
//!
//! Configuration: `kubelet.config.k8s.io/v1`, `CredentialProviderConfig`; what is said to a plugin:
//! `credentialprovider.kubelet.k8s.io/v1`. Plugins that need a pod's service account token are passed over: no
//! pod is known here.

mod matching;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::Credential;
use crate::program::{Program, brief, is_plain_name};
use matching::{host_of, matches};

/// The version that is spoken with plugins.
const SPOKEN: &str = "credentialprovider.kubelet.k8s.io/v1";
/// What the kubelet gives a plugin, too.
const PLUGIN_MAX: Duration = Duration::from_secs(60);
/// A configuration of some providers has some KiB.
const CONFIG_MAX: usize = 1 << 20;
/// Answers that are kept; beyond that, all are forgotten: a plugin is asked again.
const CACHED_MAX: usize = 1_000;
/// However long an answer says that it is good.
const CACHED_FOR_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The plugins of a node, and what they answered.
#[derive(Debug)]
pub struct Plugins {
    folder: PathBuf,
    providers: Vec<Provider>,
    cache: Mutex<HashMap<CacheKey, Cached>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: GoDuration,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    /// What it holds does not matter.
    token_attributes: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'static str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    api_version: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<GoDuration>,
    #[serde(default)]
    auth: Option<Auths>,
}

/// By a pattern like those of `matchImages`.
type Auths = BTreeMap<String, Auth>;

#[derive(Clone, Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

#[derive(Clone, Copy, Deserialize)]
enum CacheKeyType {
    Image,
    Registry,
    Global,
}

/// Which provider, and for what.
type CacheKey = (usize, String);

struct Cached {
    until: Instant,
    auths: Auths,
}

/// `10m`, `1h30m0s`: as Go writes it.
#[derive(Clone, Copy, Debug)]
struct GoDuration(Duration);

impl Plugins {
    /// Reads a configuration, YAML or JSON. `folder` holds the plugins.
    pub fn parse(config: &str, folder: PathBuf) -> anyhow::Result<Plugins> {
        ensure!(config.len() <= CONFIG_MAX, "it is larger than {CONFIG_MAX} bytes");
        let config: Config = serde_saphyr::from_str(config)
            .map_err(|error| anyhow::anyhow!("it is no CredentialProviderConfig: {error}"))?;
        ensure!(config.kind == "CredentialProviderConfig", "it is a {}", brief(&config.kind));
        for provider in &config.providers {
            let name = &provider.name;
            ensure!(is_plain_name(name), "{name:?} is no name of a plugin");
            let version = &provider.api_version;
            ensure!(version == SPOKEN, "plugin {name} speaks {version:?}; only {SPOKEN} is spoken here");
            if provider.token_attributes.is_some() {
                tracing::warn!(plugin = name, "passed over: it needs a pod's service account token");
            }
        }
        Ok(Plugins { folder, providers: config.providers, cache: Mutex::default() })
    }

    /// The credential for an image, as `HOST[:PORT]/REPOSITORY` with or without tag and digest: of the first provider
    /// that has one. A plugin that fails is told of and passed over.
    pub async fn look_up(&self, image: &str) -> Option<Credential> {
        for (index, provider) in self.providers.iter().enumerate() {
            let wanted = provider.match_images.iter().any(|pattern| matches(pattern, image));
            if !wanted || provider.token_attributes.is_some() {
                continue;
            }
            match self.ask(index, provider, image).await {
                Ok(auths) => {
                    if let Some(found) = best(&auths, image) {
                        return Some(found);
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        plugin = provider.name,
                        image,
                        error = format!("{error:#}"),
                        "a credential provider failed"
                    );
                }
            }
        }
        None
    }

    async fn ask(&self, index: usize, provider: &Provider, image: &str) -> anyhow::Result<Auths> {
        if let Some(known) = self.cached(index, image) {
            return Ok(known);
        }
        let request = Request { api_version: SPOKEN, kind: "CredentialProviderRequest", image };
        let environment = provider.env.iter().map(|variable| (variable.name.clone(), variable.value.clone()));
        let program = Program {
            file: self.folder.join(&provider.name),
            arguments: provider.args.clone(),
            environment: environment.collect(),
        };
        let output = program.run(&serde_json::to_vec(&request)?, PLUGIN_MAX).await?;
        if !output.succeeded {
            bail!("it failed: {}", brief(String::from_utf8_lossy(&output.errors).trim()));
        }
        // Not the parser's message: it could quote the secret.
        let response: Response =
            serde_json::from_slice(&output.answer).ok().context("its answer is not understood")?;
        ensure!(response.api_version == SPOKEN, "it answered in {}", brief(&response.api_version));
        let auths = response.auth.unwrap_or_default();
        let lasts = response.cache_duration.unwrap_or(provider.default_cache_duration).0;
        let covers = match response.cache_key_type {
            CacheKeyType::Image => image,
            CacheKeyType::Registry => host_of(image),
            CacheKeyType::Global => "",
        };
        self.keep((index, covers.to_owned()), lasts, &auths);
        Ok(auths)
    }

    fn cached(&self, index: usize, image: &str) -> Option<Auths> {
        let (now, cache) = (Instant::now(), self.cache());
        [image, host_of(image), ""].into_iter().find_map(|covers| {
            let cached = cache.get(&(index, covers.to_owned()))?;
            (cached.until > now).then(|| cached.auths.clone())
        })
    }

    fn keep(&self, key: CacheKey, lasts: Duration, auths: &Auths) {
        if lasts.is_zero() {
            return;
        }
        let mut cache = self.cache();
        if cache.len() >= CACHED_MAX {
            cache.clear();
        }
        let until = Instant::now() + lasts.min(CACHED_FOR_MAX);
        cache.insert(key, Cached { until, auths: auths.clone() });
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<CacheKey, Cached>> {
        // Each change is one insertion.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The credential of the most exact pattern: the last in the order of the alphabet, as the kubelet has it.
fn best(auths: &Auths, image: &str) -> Option<Credential> {
    let (_, auth) = auths.iter().rev().find(|(pattern, _)| matches(pattern, image))?;
    Some(Credential::Basic { username: auth.username.clone(), password: auth.password.clone() })
}

impl std::fmt::Debug for Cached {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Cached({} redacted, until {:?})", self.auths.len(), self.until)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Go knows 0 without a unit.
        let text = if text == "0" { "0s" } else { &text };
        let parsed = humantime::parse_duration(text).map(GoDuration);
        parsed.map_err(|error| serde::de::Error::custom(format!("{text:?} is no duration: {error}")))
    }
}
