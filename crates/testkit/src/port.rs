//! Ports for servers that cannot pick one themselves.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

/// Below the ports that the kernel gives to outgoing connections by default: no client of another test sits on one of these.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// Ports given out by this process.
static GIVEN: AtomicU32 = AtomicU32::new(0);

/// A loopback port on which nobody listens, and that this process gives to nobody else. Two test programs begin at
/// different places; one that is still met by another is tried again (see [`crate::Registry::start`]).
pub fn free() -> anyhow::Result<u16> {
    let own = std::process::id().wrapping_mul(97);
    let mut candidates = (0..COUNT).map(|_| {
        let number = GIVEN.fetch_add(1, Ordering::Relaxed);
        FIRST + own.wrapping_add(number) % COUNT
    });
    let free = candidates.find_map(|port| {
        let port = u16::try_from(port).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok().then_some(port)
    });
    free.with_context(|| format!("none of {COUNT} ports from {FIRST} on is free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_port_twice_nor_one_that_is_taken() {
        let mut given: Vec<_> = (0..50).map(|_| free().unwrap()).collect();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 50);
        // The next one.
        let number = std::process::id().wrapping_mul(97).wrapping_add(GIVEN.load(Ordering::Relaxed));
        let next = u16::try_from(FIRST + number % COUNT).unwrap();
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, next));
        assert_ne!(free().unwrap(), next);
    }
}
