//! Ports for servers that cannot pick one themselves.

use std::net::{Ipv4Addr, TcpListener};

/// A loopback port that was free a moment ago. Another process may take it first: a server that is
/// started with it must be tried again with another (see [`crate::Registry::start`]).
pub fn free() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
