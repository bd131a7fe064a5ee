//! Where one repository of a registry can be had: the registry itself, or a mirror of it.

use std::sync::atomic::AtomicBool;

use url::Url;

use super::auth::Login;
use super::reach::Nearness;
use crate::Access;

/// How Docker Hub is named, and where it answers.
pub(crate) const DOCKER_HUB: &str = "docker.io";
pub(crate) const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

#[derive(Debug)]
pub(super) struct Endpoint {
    base: Url,
    /// For messages.
    pub(super) host: String,
    /// The registry that it stands for, when it is a mirror.
    pub(super) mirror_of: Option<String>,
    pub(super) login: Login,
    /// How near it may be to this machine.
    pub(super) nearest: Nearness,
    /// A mirror that did not answer; it is not asked again for this image.
    pub(super) down: AtomicBool,
}

impl Endpoint {
    /// The registry itself; none when its name is not that of a host.
    pub(super) fn origin(
        registry: &str,
        repository: &str,
        access: Access,
        plain_http: bool,
        nearest: Nearness,
    ) -> Option<Endpoint> {
        let host = if registry == DOCKER_HUB { DOCKER_HUB_HOST } else { registry };
        let scheme = if plain_http { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/")).ok()?;
        let login = Login::new(access, registry.to_owned(), repository.to_owned(), plain_http);
        let (host, down) = (host.to_owned(), AtomicBool::new(false));
        Some(Endpoint { base, host, mirror_of: None, login, nearest, down })
    }

    /// A mirror of `registry`; none when its URL is not HTTP. It is asked with its own credential:
    /// the caller's is for the registry alone.
    pub(super) fn mirror(base: &Url, registry: &str, repository: &str) -> Option<Endpoint> {
        let host = match (base.host_str()?, base.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        if !matches!(base.scheme(), "http" | "https") {
            return None;
        }
        let login = Login::new(Access::own(), host.clone(), repository.to_owned(), base.scheme() == "http");
        let (base, mirror_of, down) = (base.clone(), Some(registry.to_owned()), AtomicBool::new(false));
        Some(Endpoint { base, host, mirror_of, login, nearest: Nearness::Loopback, down })
    }

    /// What its authorisation is for.
    pub(super) fn home(&self) -> &Url {
        &self.base
    }

    pub(super) fn url(&self, repository: &str, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/v2/{repository}/{path}", self.base.path().trim_end_matches('/')));
        // Mirrors of several registries need to know which one is meant (containerd's convention).
        if let Some(registry) = &self.mirror_of {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }
}
