//! What a process of a mesh needs to be let in and believed: looked at once by `sluice check`, and again and again by each service, whose
//! `/readyz` says the same.

mod clock;
mod finding;
mod keys;

use std::path::PathBuf;
use std::time::Duration;

use bus::NatsConfig;
use lifecycle::{Probe, Service};

pub use clock::{CLOCK, SKEW_MAX, clock, clock_probe, differs, skew};
pub use finding::{Finding, Outcome};
pub use keys::{nats, private, tls};

/// Files are looked at as often: whoever renews them replaces them.
const EVERY: Duration = Duration::from_secs(30);
const WITHIN: Duration = Duration::from_secs(10);

/// What a service was told to use.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub nats: Vec<NatsConfig>,
    pub tls: Vec<tls::Config>,
    /// Files that are its owner's alone, and what they are.
    pub private: Vec<(&'static str, PathBuf)>,
}

/// Makes a service ready only while what it needs is there and counts. What somebody should look at besides is told beside that it is
/// ready: a file's mode that a platform sets takes no service out of its load balancer.
pub fn keep_looking(service: &Service, needs: Needs) {
    let Needs { nats, tls, private } = needs;
    let users = nats.clone();
    let credentials = move || unbearable(users.iter().flat_map(keys::nats));
    service.depend_on(probe("NATS credentials", "sluice_nats_credentials_count"), on_thread(credentials));
    let own = tls.clone();
    let certificate = move || unbearable(own.iter().flat_map(keys::tls));
    service.depend_on(probe("certificate", "sluice_certificate_counts"), on_thread(certificate));
    let notes = service.ready.clone();
    let look = move || {
        let private = private.iter().map(|(what, file)| keys::private(what, file));
        let all = nats.iter().flat_map(keys::nats).chain(tls.iter().flat_map(keys::tls)).chain(private);
        let noted = all.filter(|found| found.bearable && !found.is_good());
        notes.note("keys", noted.map(|found| found.in_one_line()).collect());
    };
    let shutdown = service.shutdown.clone();
    service.tasks.spawn(async move {
        let again = async {
            loop {
                // A look that ended in a panic has told of it.
                let _ = tokio::task::spawn_blocking(look.clone()).await;
                tokio::time::sleep(EVERY).await;
            }
        };
        shutdown.run_until_cancelled(again).await
    });
}

const fn probe(what: &'static str, gauge: &'static str) -> Probe {
    Probe { what, gauge, every: EVERY, within: WITHIN }
}

/// All without which a process cannot work, in one line.
fn unbearable(findings: impl Iterator<Item = Finding>) -> Result<(), String> {
    let bad: Vec<String> =
        findings.filter(|found| !found.bearable).map(|finding| finding.in_one_line()).collect();
    if bad.is_empty() { Ok(()) } else { Err(bad.join("; ")) }
}

/// Reading files may block.
fn on_thread<L>(look: L) -> impl Fn() -> Looking + Send + Sync + 'static
where
    L: Fn() -> Result<(), String> + Clone + Send + Sync + 'static,
{
    move || {
        let look = look.clone();
        Box::pin(async move {
            let looked = tokio::task::spawn_blocking(look).await;
            looked.unwrap_or_else(|error| Err(format!("it could not be looked at: {error}")))
        })
    }
}

/// One look at something.
pub type Looking = std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
