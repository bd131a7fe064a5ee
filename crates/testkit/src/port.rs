//! Ports for servers that cannot pick one themselves.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// Below the ports that the kernel gives to outgoing connections by default: no client of another test sits on one of these.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// How many ports this process has looked at.
static LOOKED_AT: AtomicU32 = AtomicU32::new(0);
/// The locks on those that it got, which end with the process.
static GIVEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A loopback port on which nobody listens, and that no other test gets while this process runs: tests are processes of their
/// own, and between a port's choice and its use by a server lie milliseconds, on a busy machine seconds.
pub fn free() -> anyhow::Result<u16> {
    let folder = folder()?;
    // Processes begin at different places, so that few of the locks that they try are held.
    let own = std::process::id().wrapping_mul(97);
    let mut candidates = (0..COUNT).map(|_| {
        let number = LOOKED_AT.fetch_add(1, Ordering::Relaxed);
        FIRST + own.wrapping_add(number) % COUNT
    });
    let free = candidates.find_map(|port| {
        let port = u16::try_from(port).ok()?;
        let lock = OpenOptions::new().create(true).append(true).open(folder.join(port.to_string())).ok()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        GIVEN.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
        Some(port)
    });
    free.with_context(|| format!("none of {COUNT} ports from {FIRST} on is free"))
}

/// Where the locks are: one folder for all tests of a user.
fn folder() -> anyhow::Result<PathBuf> {
    let name = format!("sluice-test-ports.{}", rustix::process::getuid().as_raw());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_port_twice() {
        let mut given: Vec<_> = (0..50).map(|_| free().unwrap()).collect();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 50);
    }

    #[test]
    fn gives_none_that_another_process_was_given() {
        let given = free().unwrap();
        let again = File::open(folder().unwrap().join(given.to_string())).unwrap();
        assert!(flock(&again, FlockOperation::NonBlockingLockExclusive).is_err(), "{given} is not locked");
    }

    #[test]
    fn gives_none_on_which_somebody_listens() {
        let next = std::process::id().wrapping_mul(97).wrapping_add(LOOKED_AT.load(Ordering::Relaxed));
        let bind =
            |number| TcpListener::bind((Ipv4Addr::LOCALHOST, u16::try_from(FIRST + number % COUNT).unwrap()));
        let taken: Vec<_> = (0..50).filter_map(|number| bind(next.wrapping_add(number)).ok()).collect();
        assert!(!taken.is_empty());
        let given = free().unwrap();
        assert!(taken.iter().all(|taken| taken.local_addr().unwrap().port() != given), "{given} is taken");
    }
}
