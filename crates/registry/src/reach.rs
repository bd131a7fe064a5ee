//! Which addresses are connected to.
//!
//! A reference, a redirect and a token server's realm are all written by somebody else, and a fetcher stands where its callers do
//! not: each could make it ask what only it can reach. So an address is judged when it is about to be connected to, after the
//! name was resolved, for a name may mean another address the next time.
//!
//! | who is asked | what it may be |
//! |---|---|
//! | a registry that the caller names | anything but link-local; with `private_registries = false`, public |
//! | a mirror, which the configuration names | anything but link-local |
//! | where one of these sends: redirects, the realm of its challenge | no nearer than that registry or mirror itself is |
//!
//! Link-local addresses, where clouds keep their metadata and credentials, are asked only where `allowed_addresses` holds them.
//! Each row has HTTP clients of its own: a connection that one of them may use must not be found by another in a common pool.
//!
//! Through a proxy all this is the proxy's to decide, as it resolves the names; addresses that stand in a URL are judged all
//! the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::Config;
use crate::transfer::Failure;

/// Where an address is, seen from this machine; the nearer, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nearness {
    Public,
    Private,
    Loopback,
    /// Link-local, and what is no host's address: nobody's registry.
    Special,
}

/// Variables that name proxies, as the HTTP client reads them.
const PROXY_VARIABLES: [&str; 6] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// Where clouds answer a machine about itself, beside 169.254.0.0/16.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// The HTTP clients of a process, one for each nearness that it may reach.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    /// Made when first needed: each reads the system's certificates.
    clients: [OnceLock<reqwest::Client>; 3],
    proxies: Arc<[String]>,
}

/// What the resolver of one client lets through.
#[derive(Clone, Debug)]
struct Gate {
    nearest: Nearness,
    allowed: Arc<[IpNet]>,
    proxies: Arc<[String]>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{host} is at {address}, which is not asked for what others name: `allowed_addresses` of the registries' settings may hold it"
)]
pub(super) struct Unreached {
    host: String,
    address: IpAddr,
}

impl Reach {
    pub(super) fn new(config: Arc<Config>) -> anyhow::Result<Reach> {
        let shared = Shared { config, clients: Default::default(), proxies: proxies().into() };
        let reach = Reach { shared: Arc::new(shared) };
        // Now, so that a setting that cannot work is found at the start.
        reach.client(Nearness::Loopback)?;
        Ok(reach)
    }

    /// The client for what may be as near as that.
    pub(super) fn client(&self, nearest: Nearness) -> anyhow::Result<&reqwest::Client> {
        let place = &self.shared.clients[nearest.min(Nearness::Loopback) as usize];
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let client = crate::transfer::client(&self.shared.config, self.gate(nearest))?;
        Ok(place.get_or_init(|| client))
    }

    /// How near a registry may be that a caller names.
    pub(super) fn of_named(&self) -> Nearness {
        if self.shared.config.private_registries { Nearness::Loopback } else { Nearness::Public }
    }

    /// An address that stands in the URL itself meets no resolver.
    pub(super) fn check(&self, url: &Url, nearest: Nearness) -> Result<(), Failure> {
        let Some(address) = literal(url) else { return Ok(()) };
        let host = url.host_str().unwrap_or_default();
        self.gate(nearest).check(host, address).map_err(|refused| Failure::refused(refused.to_string()))
    }

    /// How near the server is that gave this answer.
    pub(super) fn nearness(&self, url: &Url, peer: Option<SocketAddr>) -> Nearness {
        let peer = peer.filter(|_| self.shared.proxies.is_empty()).map(|peer| peer.ip());
        literal(url).or(peer).map_or(Nearness::Public, nearness)
    }

    fn gate(&self, nearest: Nearness) -> Gate {
        let nearest = nearest.min(Nearness::Loopback);
        let allowed = self.shared.config.allowed_addresses.as_slice().into();
        Gate { nearest, allowed, proxies: self.shared.proxies.clone() }
    }
}

impl Gate {
    fn check(&self, host: &str, address: IpAddr) -> Result<(), Unreached> {
        let address = address.to_canonical();
        let near = nearness(address) <= self.nearest;
        match near || self.allowed.iter().any(|net| net.contains(&address)) {
            true => Ok(()),
            false => Err(Unreached { host: host.to_owned(), address }),
        }
    }

    /// The addresses of a name that may be connected to; an error when there is none.
    fn pass(
        &self,
        host: &str,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Unreached> {
        if self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host)) {
            return Ok(found.collect());
        }
        let (mut passed, mut refused) = (Vec::new(), None);
        for address in found {
            match self.check(host, address.ip()) {
                Ok(()) => passed.push(address),
                Err(unreached) => refused = Some(unreached),
            }
        }
        match refused {
            Some(refused) if passed.is_empty() => Err(refused),
            _ => Ok(passed),
        }
    }
}

impl Resolve for Gate {
    fn resolve(&self, name: Name) -> Resolving {
        let gate = self.clone();
        Box::pin(async move {
            let host = name.as_str();
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(Box::new(gate.pass(host, found)?.into_iter()) as Addrs)
        })
    }
}

/// Whether a registry's host is this machine by its very name: demonstrations and tests.
pub(super) fn is_loopback_name(registry: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{registry}/")) else { return false };
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        _ => literal(&url).is_some_and(|address| nearness(address) == Nearness::Loopback),
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

fn nearness(address: IpAddr) -> Nearness {
    match address.to_canonical() {
        IpAddr::V4(address) => nearness_v4(address),
        IpAddr::V6(address) => nearness_v6(address),
    }
}

fn nearness_v4(address: Ipv4Addr) -> Nearness {
    let [first, second, third, _] = address.octets();
    match first {
        _ if METADATA_V4.contains(&address) => Nearness::Special,
        // "This network"; Linux takes 0.0.0.0 for itself. From 224 on: groups, reserved, everybody.
        0 | 224.. => Nearness::Special,
        127 => Nearness::Loopback,
        169 if second == 254 => Nearness::Special,
        10 => Nearness::Private,
        172 if second & 0xf0 == 16 => Nearness::Private,
        192 if second == 168 || (second == 0 && third == 0) => Nearness::Private,
        // Behind a carrier's translation, and between the machines of some clouds.
        100 if second & 0xc0 == 64 => Nearness::Private,
        198 if second & 0xfe == 18 => Nearness::Private,
        _ => Nearness::Public,
    }
}

fn nearness_v6(address: Ipv6Addr) -> Nearness {
    let parts = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        nearness_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        _ if METADATA_V6.contains(&address) => Nearness::Special,
        [0, 0, 0, 0, 0, 0, 0, 1] => Nearness::Loopback,
        // Unspecified, and IPv4 in the form that nobody uses any more.
        [0, 0, 0, 0, 0, 0, ..] => Nearness::Special,
        // Translated to IPv4 on the way.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x64, 0xff9b, 1, ..] => Nearness::Special,
        [0x2002, high, low, ..] => v4(high, low),
        [first, ..] if first & 0xff00 == 0xff00 || first & 0xffc0 == 0xfe80 => Nearness::Special,
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Nearness::Private,
        _ => Nearness::Public,
    }
}

/// The hosts of the proxies that the environment names.
fn proxies() -> Vec<String> {
    let named = PROXY_VARIABLES.iter().filter_map(|variable| std::env::var(variable).ok());
    named.filter_map(|value| proxy_host(value.trim())).collect()
}

fn proxy_host(value: &str) -> Option<String> {
    let url = match value.contains("://") {
        true => Url::parse(value),
        false => Url::parse(&format!("http://{value}")),
    };
    url.ok()?.host_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(address: &str) -> Nearness {
        nearness(address.parse().unwrap())
    }

    #[test]
    fn addresses_are_as_near_as_they_are_however_they_are_written() {
        for public in
            ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert_eq!(near(public), Nearness::Public, "{public}");
        }
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "fd12::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
        ] {
            assert_eq!(near(private), Nearness::Private, "{private}");
        }
        for loopback in ["127.0.0.1", "127.255.0.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"] {
            assert_eq!(near(loopback), Nearness::Loopback, "{loopback}");
        }
        for special in [
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "64:ff9b:1::1",
        ] {
            assert_eq!(near(special), Nearness::Special, "{special}");
        }
    }

    #[test]
    fn a_name_is_reached_at_those_of_its_addresses_that_may_be() {
        let gate = |nearest, allowed: &[&str]| {
            let allowed: Vec<IpNet> = allowed.iter().map(|net| net.parse().unwrap()).collect();
            Gate { nearest, allowed: allowed.into(), proxies: ["proxy.test".to_owned()].into() }
        };
        let pass = |gate: Gate, host: &str, addresses: &[&str]| -> Result<usize, String> {
            let found: Vec<SocketAddr> =
                addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect();
            gate.pass(host, found.into_iter()).map(|passed| passed.len()).map_err(|error| error.to_string())
        };
        let public = || gate(Nearness::Public, &[]);
        assert_eq!(pass(public(), "a.test", &["8.8.8.8", "127.0.0.1"]), Ok(1));
        assert_eq!(pass(public(), "a.test", &[]), Ok(0));
        let error = pass(public(), "a.test", &["10.0.0.1", "::1"]).unwrap_err();
        assert!(error.contains("a.test is at ::1") && error.contains("allowed_addresses"), "{error}");
        assert_eq!(pass(public(), "PROXY.test", &["10.0.0.1"]), Ok(1), "the proxy is the operator's");
        assert_eq!(pass(gate(Nearness::Private, &[]), "a.test", &["10.0.0.1", "127.0.0.1"]), Ok(1));
        assert!(pass(gate(Nearness::Loopback, &[]), "a.test", &["169.254.169.254"]).is_err());
        let told = gate(Nearness::Public, &["10.1.0.0/16", "169.254.7.0/24"]);
        assert_eq!(pass(told, "a.test", &["10.1.2.3", "10.2.0.1", "169.254.7.7"]), Ok(2));
    }

    #[test]
    fn only_what_names_this_machine_is_loopback_by_name() {
        for name in ["localhost:5000", "localhost", "127.0.0.1:5000", "127.1", "[::1]:5000", "a.localhost"] {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in ["localhost.example", "10.0.0.1:5000", "registry.example", "[fe80::1]:5000", "0.0.0.0"] {
            assert!(!is_loopback_name(name), "{name}");
        }
    }

    #[test]
    fn proxies_are_read_as_the_client_reads_them() {
        assert_eq!(proxy_host("http://user:pass@proxy.lan:3128/"), Some("proxy.lan".to_owned()));
        assert_eq!(proxy_host("proxy.lan:3128"), Some("proxy.lan".to_owned()));
        assert_eq!(proxy_host(""), None);
    }
}
