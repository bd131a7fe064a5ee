//! Which addresses no other machine can reach.

use std::net::IpAddr;

/// Whether the host of `url` (with a scheme and a port, or without) is this machine. A name is one only if it is `localhost`: what
/// others mean is known no sooner than they are dialled.
pub fn is_this_machine(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host_and_port.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => match host_and_port.matches(':').count() {
            0 | 1 => host_and_port.split(':').next().unwrap_or_default(),
            _ => host_and_port,
        },
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_this_machine() {
        for own in [
            "http://127.0.0.1:7460",
            "nats://localhost:4222",
            "nats://user:pass@127.0.0.9",
            "http://[::1]:80/x",
            "::1",
            "localhost",
            "127.1.2.3:4222",
        ] {
            assert!(is_this_machine(own), "{own}");
        }
        for other in [
            "http://10.0.0.1:7460",
            "nats://nats:4222",
            "http://127.0.0.1.example:80",
            "http://127.0.0.1@evil.example",
            "http://[fe80::1]:80",
            "0.0.0.0:80",
            "",
        ] {
            assert!(!is_this_machine(other), "{other}");
        }
    }
}
