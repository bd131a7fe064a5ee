//! The places where a node looks for a credential, in the order that its operator chose: the first that has one for
//! the image wins.

use std::path::PathBuf;

use anyhow::Context as _;
use names::Reference;
use proto::cri::AuthConfig;
use serde::{Deserialize, Serialize};

use crate::Credential;
use crate::docker::{self, Places};
use crate::kubelet::Plugins;
use crate::pulls::{Pull, Pulls};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to look, in this order.
    pub order: Vec<Source>,
    /// A docker `config.json`, or the folder that holds it. Unset: `$DOCKER_CONFIG`, then `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// Where `docker-credential-*` helpers are looked for, like `PATH`. Unset: `PATH`.
    pub helper_path: Option<String>,
    /// The kubelet's `CredentialProviderConfig`, as its `--image-credential-provider-config` names it.
    pub kubelet_config: Option<PathBuf>,
    /// The folder of its plugins, as `--image-credential-provider-bin-dir` names it.
    pub kubelet_plugins: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// What the kubelet hands on with the pull that is under way.
    Cri,
    /// Docker's configuration and its helpers.
    Docker,
    /// The kubelet's credential provider plugins.
    Kubelet,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            order: vec![Source::Cri, Source::Docker, Source::Kubelet],
            docker_config: None,
            helper_path: None,
            kubelet_config: None,
            kubelet_plugins: None,
        }
    }
}

/// Shared by all who need a credential.
#[derive(Debug)]
pub struct Sources {
    order: Vec<Source>,
    pulls: Pulls,
    docker: Places,
    plugins: Option<Plugins>,
}

impl Sources {
    /// Reads the kubelet's configuration, where one is named.
    pub fn open(config: &Config) -> anyhow::Result<Sources> {
        let plugins = match (&config.kubelet_config, &config.kubelet_plugins) {
            (Some(file), Some(folder)) => {
                let context = || format!("cannot read the kubelet's credential providers {}", file.display());
                let text = std::fs::read_to_string(file).with_context(context)?;
                Some(Plugins::parse(&text, folder.clone()).with_context(context)?)
            }
            (None, None) => None,
            _ => anyhow::bail!("kubelet_config and kubelet_plugins belong together: set both or neither"),
        };
        let docker = Places { config: config.docker_config.clone(), helper_path: config.helper_path.clone() };
        Ok(Sources { order: config.order.clone(), pulls: Pulls::default(), docker, plugins })
    }

    /// A pull begins, with what the kubelet handed on; known until the answer is dropped. None: nothing that could be used.
    pub fn begin_pull(&self, image: &str, auth: AuthConfig) -> Option<Pull> {
        let image = parsed(image)?;
        match Credential::from_cri(auth, image.registry()) {
            Ok(credential) => Some(self.pulls.begin(pull_key(&image), credential?)),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(%image, error, "the credential of a pull is not understood");
                None
            }
        }
    }

    /// The credential for an image, if any source has one. A source that fails is told of and passed over.
    pub async fn look_up(&self, image: &str) -> Option<Credential> {
        let image = parsed(image)?;
        for source in &self.order {
            let found = match source {
                Source::Cri => self.pulls.of(&pull_key(&image)),
                Source::Docker => self.ask_docker(&image).await,
                Source::Kubelet => match &self.plugins {
                    Some(plugins) => plugins.look_up(&image.to_string()).await,
                    None => None,
                },
            };
            if let Some(found) = found {
                tracing::debug!(%image, ?source, "a credential");
                return Some(found);
            }
        }
        None
    }

    async fn ask_docker(&self, image: &Reference) -> Option<Credential> {
        let found = docker::look_up(&self.docker, image.registry()).await;
        found.unwrap_or_else(|error| {
            tracing::warn!(%image, error = format!("{error:#}"), "docker's configuration failed");
            None
        })
    }
}

fn parsed(image: &str) -> Option<Reference> {
    let name = Reference::parse(image);
    if name.is_none() {
        tracing::debug!(image, "no image's name");
    }
    name
}

/// What a pull is known by: by the time that a snapshotter hears of it the tag beside a digest is gone, and the
/// manifest's digest may stand in its place.
fn pull_key(image: &Reference) -> String {
    format!("{}/{}", image.registry(), image.repository())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    const IMAGE: &str = "registry.example:5000/team/app:1";

    fn basic(username: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: "secret".to_owned() }
    }

    /// Docker's configuration and a plugin, each with a user of its own for [`IMAGE`].
    fn config(folder: &Path, order: &[Source]) -> Config {
        let auths = r#"{"auths": {"registry.example:5000": {"username": "docker", "password": "secret"}}}"#;
        std::fs::write(folder.join("config.json"), auths).unwrap();
        let plugin = folder.join("plugin");
        let answer = r#"{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry",
            "auth": {"registry.example:5000": {"username": "kubelet", "password": "secret"}}}"#;
        std::fs::write(&plugin, format!("#!/bin/sh\ncat > /dev/null\necho '{answer}'\n")).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let providers = r#"{"kind": "CredentialProviderConfig", "providers": [{"name": "plugin",
            "matchImages": ["registry.example:5000"], "defaultCacheDuration": "1m",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1"}]}"#;
        std::fs::write(folder.join("providers"), providers).unwrap();
        Config {
            order: order.to_vec(),
            docker_config: Some(folder.join("config.json")),
            kubelet_config: Some(folder.join("providers")),
            kubelet_plugins: Some(folder.to_owned()),
            ..Config::default()
        }
    }

    #[tokio::test]
    async fn the_first_source_that_has_one_wins() {
        use Source::{Cri, Docker, Kubelet};
        let folder = tempfile::tempdir().unwrap();
        let check = async |order: &[Source], expected: &str| {
            let sources = Sources::open(&config(folder.path(), order)).unwrap();
            assert_eq!(sources.look_up(IMAGE).await, Some(basic(expected)), "{order:?}");
            let auth = AuthConfig {
                username: "cri".to_owned(),
                password: "secret".to_owned(),
                ..AuthConfig::default()
            };
            let pull = sources.begin_pull(IMAGE, auth).unwrap();
            let during = if order[0] == Cri { "cri" } else { expected };
            assert_eq!(sources.look_up(IMAGE).await, Some(basic(during)), "{order:?}");
            drop(pull);
            assert_eq!(sources.look_up(IMAGE).await, Some(basic(expected)), "{order:?}");
            assert_eq!(sources.look_up("other.example/app").await, None);
        };
        check(&[Cri, Docker, Kubelet], "docker").await;
        check(&[Cri, Kubelet, Docker], "kubelet").await;
        check(&[Docker, Cri], "docker").await;
    }

    #[test]
    fn half_a_configuration_is_refused() {
        let config = Config { kubelet_config: Some("/providers".into()), ..Config::default() };
        assert!(Sources::open(&config).unwrap_err().to_string().contains("kubelet_plugins"));
    }
}
