//! Which registries may tell of pushes, and what is done about it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use glob::{MatchOptions, Pattern};
use names::{Project, Reference};
use proto::Platform;
use serde::{Deserialize, Serialize};

use super::secrets::Secrets;
use super::{Registry, told};

/// `*` stays within one part of a repository's name, `**` does not.
pub(super) const MATCH: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};
/// Images that may wait at most, whatever the configuration says: each takes some hundred bytes.
const QUEUE_MAX: usize = 100_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where registries tell; port 0 takes any that is free. Absent: nowhere.
    pub listen: Option<SocketAddr>,
    /// What is shown to registries; without, only this machine's own are listened to.
    pub tls: tls::Config,
    /// By a name of yours, at the end of the address that this registry calls.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Images that wait for their import. More are refused, and told again by their registry.
    pub queue: usize,
    /// Imported at the same time, and one less than `limits.imports_at_once`, where that is more than one: pulls do not wait for pushes.
    pub at_once: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// `HOST[:PORT]`, as nodes name it: where images are read from, whatever a notification says.
    pub host: String,
    /// Secrets, one a line, any of which the registry shows. Read for each request.
    pub secret_file: PathBuf,
    /// What is imported: `team/app`, `team/*`, `team/**`.
    pub repositories: Vec<String>,
    /// For which it is imported, within its quota.
    pub project: Project,
    /// `linux/arm64`; none: what this fetcher itself runs on.
    pub platforms: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: None,
            tls: tls::Config::default(),
            registries: BTreeMap::new(),
            queue: 1_000,
            at_once: 1,
        }
    }
}

impl Config {
    /// Finds what cannot work before anything is started.
    pub(super) fn open(&self) -> anyhow::Result<BTreeMap<String, Arc<Registry>>> {
        ensure!(!self.registries.is_empty(), "fetcher.push.listen is set and fetcher.push.registries is not");
        ensure!(
            (1..=QUEUE_MAX).contains(&self.queue),
            "fetcher.push.queue is {}: 1 to {QUEUE_MAX} expected",
            self.queue
        );
        ensure!(self.at_once > 0, "fetcher.push.at_once is 0: nothing would be imported");
        let open = |(name, registry): (&String, &RegistryConfig)| {
            let opened = registry.open(name).with_context(|| format!("fetcher.push.registries.{name}"))?;
            Ok((name.clone(), Arc::new(opened)))
        };
        self.registries.iter().map(open).collect()
    }

    pub(super) fn at_once(&self, imports_at_once: usize) -> usize {
        self.at_once.min(imports_at_once.saturating_sub(1)).max(1)
    }
}

impl RegistryConfig {
    pub(super) fn open(&self, name: &str) -> anyhow::Result<Registry> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        ensure!(
            !name.is_empty() && name.bytes().all(good),
            "letters, digits, `-` and `_` expected in its name, which stands in an address"
        );
        let host = Reference::parse(&format!("{}/any/repository", self.host));
        ensure!(
            host.is_some_and(|reference| reference.registry() == self.host),
            "host is {:?}: HOST[:PORT] expected, as in the names of its images",
            self.host
        );
        ensure!(
            !self.repositories.is_empty(),
            "repositories is empty, so nothing would be imported: [\"**\"] allows all"
        );
        let pattern = |text: &String| {
            let empty = text.split('/').any(str::is_empty);
            ensure!(!empty, "repositories: {text:?} is no pattern: parts between slashes expected");
            Pattern::new(text).with_context(|| format!("repositories: {text:?} is no pattern"))
        };
        let repositories = self.repositories.iter().map(pattern).collect::<anyhow::Result<_>>()?;
        let platforms = self.platforms.iter().map(|text| platform(text)).collect::<anyhow::Result<_>>()?;
        Secrets::read(&self.secret_file)?;
        let (host, project) = (self.host.clone(), self.project.clone());
        Ok(Registry { name: name.to_owned(), host, project, platforms, config: self.clone(), repositories })
    }
}

impl Registry {
    /// As they are at this moment. Blocks.
    pub(super) fn secrets(&self) -> anyhow::Result<Secrets> {
        Secrets::read(&self.config.secret_file)
    }

    /// The repository and digest in a name that holds the registry, too: only of this one.
    pub(super) fn own(&self, full: &str) -> Result<Reference, told::Ignored> {
        let reference = Reference::parse(full).ok_or(told::Ignored::Malformed)?;
        if reference.registry() == self.host { Ok(reference) } else { Err(told::Ignored::OtherRegistry) }
    }
}

fn platform(text: &str) -> anyhow::Result<Platform> {
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts[..] {
        [os, architecture] => (os, architecture, ""),
        [os, architecture, variant] => (os, architecture, variant),
        _ => ("", "", ""),
    };
    ensure!(
        !os.is_empty() && !architecture.is_empty() && !text.ends_with('/'),
        "platforms: {text:?} is no platform: OS/ARCH[/VARIANT] expected, as in linux/arm64"
    );
    Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(folder: &std::path::Path) -> RegistryConfig {
        let secret_file = folder.join("secret");
        std::fs::write(&secret_file, "a secret of some length\n").unwrap();
        RegistryConfig {
            host: "registry.example:5000".to_owned(),
            secret_file,
            repositories: ["team/*", "prod/**", "base"].map(str::to_owned).to_vec(),
            platforms: vec!["linux/arm64/v8".to_owned()],
            ..RegistryConfig::default()
        }
    }

    #[test]
    fn repositories_are_allowed_by_pattern() {
        let folder = tempfile::tempdir().unwrap();
        let opened = registry(folder.path()).open("main").unwrap();
        for (repository, allowed) in [
            ("team/app", true),
            ("team/app/more", false),
            ("team", false),
            ("teams/app", false),
            ("prod/a/b/c", true),
            ("base", true),
            ("base/app", false),
            ("", false),
        ] {
            assert_eq!(opened.allows(repository), allowed, "{repository}");
        }
        let all = RegistryConfig { repositories: vec!["**".to_owned()], ..registry(folder.path()) };
        assert!(all.open("all").unwrap().allows("any/thing/at/all"));
    }

    #[test]
    fn what_cannot_work_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = registry(folder.path());
        let wrong = |change: &dyn Fn(&mut RegistryConfig), complaint: &str| {
            let mut config = good.clone();
            change(&mut config);
            let error = format!("{:#}", config.open("main").unwrap_err());
            assert!(error.contains(complaint), "{error}");
        };
        wrong(&|config| config.host = "https://registry.example".to_owned(), "host is");
        wrong(&|config| config.host = "registry.example/team".to_owned(), "host is");
        wrong(&|config| config.host = String::new(), "host is");
        wrong(&|config| config.repositories.clear(), "nothing would be imported");
        wrong(&|config| config.repositories = vec!["a//b".to_owned()], "is no pattern");
        wrong(&|config| config.repositories = vec!["a***".to_owned()], "is no pattern");
        wrong(&|config| config.platforms = vec!["linux".to_owned()], "is no platform");
        wrong(&|config| config.secret_file = folder.path().join("none"), "none");
        assert!(good.open("a/b").is_err());
        let config = Config { listen: Some(([127, 0, 0, 1], 0).into()), ..Config::default() };
        assert!(config.open().unwrap_err().to_string().contains("registries is not"));
        let config = Config { registries: [("main".to_owned(), good.clone())].into(), ..config };
        config.open().unwrap();
        assert!(Config { queue: 0, ..config.clone() }.open().is_err());
        assert!(Config { at_once: 0, ..config }.open().is_err());
    }

    #[test]
    fn pulls_keep_a_turn_of_their_own() {
        let config = Config { at_once: 5, ..Config::default() };
        assert_eq!([0, 1, 2, 4, 10].map(|imports| config.at_once(imports)), [1, 1, 1, 3, 5]);
    }
}
