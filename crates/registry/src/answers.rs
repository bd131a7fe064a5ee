//! Whether the registries and mirrors that the configuration names answer at all: no image, and no credential.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use http::StatusCode;
use url::Url;

use crate::endpoint::{DOCKER_HUB, DOCKER_HUB_HOST};
use crate::reach::{Nearness, Reach};
use crate::{Client, Config};

/// Asked at the same time.
const ASKED_AT_ONCE: usize = 8;
/// Registries that are asked; a configuration names a handful.
const ASKED_MAX: usize = 64;

/// One that was asked for `/v2/`.
#[derive(Debug)]
pub struct Answered {
    /// Its host, or the URL of a mirror.
    pub name: String,
    /// The registry that it stands for, when it is a mirror: others are asked in its place.
    pub mirror_of: Option<String>,
    /// Or why it is no registry that can be used from here.
    pub answers: Result<(), String>,
}

impl Client {
    /// Asks each registry and mirror that the configuration names.
    pub async fn answers(&self, within: Duration) -> Vec<Answered> {
        let asked =
            named(&self.config).into_iter().take(ASKED_MAX).map(|(name, url, mirror_of)| async move {
                let asking = tokio::time::timeout(within, ask(&self.reach, url));
                let answers = asking.await.unwrap_or_else(|_| Err(format!("no answer within {within:?}")));
                Answered { name, mirror_of, answers }
            });
        futures::stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await
    }
}

/// The name, where it answers, and what it is a mirror of.
fn named(config: &Config) -> Vec<(String, Result<Url, String>, Option<String>)> {
    let hosts = config.mirrors.keys().chain(&config.plain_http);
    let shared = config.shared_credentials.iter().filter_map(|named| named.split('/').next());
    let hosts: BTreeSet<&str> = hosts.map(String::as_str).chain(shared).collect();
    let origin = |host: &str| {
        let plain = config.plain_http.iter().any(|plain| plain == host);
        let at = if host == DOCKER_HUB { DOCKER_HUB_HOST } else { host };
        let scheme = if plain { "http" } else { "https" };
        let url = Url::parse(&format!("{scheme}://{at}/v2/"));
        (host.to_owned(), url.map_err(|error| format!("it is no host: {error}")), None)
    };
    let mirror = |base: &Url, of: &str| {
        let mut url = base.clone();
        url.set_path(&format!("{}/v2/", base.path().trim_end_matches('/')));
        (base.to_string(), Ok(url), Some(of.to_owned()))
    };
    let mirrors =
        config.mirrors.iter().flat_map(|(of, bases)| bases.iter().map(move |base| mirror(base, of)));
    hosts.into_iter().map(origin).chain(mirrors).collect()
}

/// Who wants to know first who asks is a registry, too.
async fn ask(reach: &Reach, url: Result<Url, String>) -> Result<(), String> {
    let url = url?;
    reach.check(&url, Nearness::Loopback).map_err(|failure| failure.reason())?;
    let client = reach.client(Nearness::Loopback).map_err(|error| format!("{error:#}"))?;
    let status = client.get(url).send().await.map_err(chain)?.status();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(()),
        status if status.is_success() || status.is_redirection() => Ok(()),
        status => Err(format!("it answers {status} for /v2/")),
    }
}

/// What went wrong, with its causes. The URL is said already.
fn chain(error: reqwest::Error) -> String {
    format!("{:#}", anyhow::Error::new(error.without_url()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_named_is_asked_once_where_it_answers() {
        let config = Config {
            mirrors: [("docker.io".to_owned(), vec![Url::parse("https://mirror.example/hub").unwrap()])]
                .into(),
            plain_http: vec!["plain.example:5000".to_owned()],
            shared_credentials: vec!["plain.example:5000/team".to_owned(), "shared.example".to_owned()],
            ..Config::default()
        };
        let asked: Vec<(String, String)> =
            named(&config).into_iter().map(|(name, url, _)| (name, url.unwrap().to_string())).collect();
        let asked: Vec<(&str, &str)> = asked.iter().map(|(name, url)| (&**name, &**url)).collect();
        assert_eq!(
            asked,
            [
                ("docker.io", "https://registry-1.docker.io/v2/"),
                ("plain.example:5000", "http://plain.example:5000/v2/"),
                ("shared.example", "https://shared.example/v2/"),
                ("https://mirror.example/hub", "https://mirror.example/hub/v2/"),
            ]
        );
    }
}
