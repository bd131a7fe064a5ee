//! A running service: its tasks, whether it is ready, and its end.
//!
//! States: starting (until [`Service::run`]) -> running (until a signal, the cancellation of
//! `shutdown`, or the end of an essential task) -> draining (no longer ready; tasks may finish, for
//! at most `drain_timeout`) -> gone. A second signal ends the draining at once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::signals::Signals;
use crate::{Probe, Readiness, UNREADY_AFTER, Waiting, admin, logs, private, telemetry};

/// The `lifecycle` section of every service's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub log: logs::Config,
    /// Where `/livez`, `/readyz` and `/metrics` are served; nowhere when absent.
    pub admin: Option<SocketAddr>,
    /// How long tasks may take to finish after a signal.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// How long what the service depends on may fail until `/readyz` says so.
    #[serde(with = "humantime_serde")]
    pub unready_after: Duration,
}

/// A service that was started. Its fields are for `main` to use and hand on.
#[derive(Debug)]
pub struct Service {
    /// Cancelled when the service is to end; cancel it to end the service.
    pub shutdown: CancellationToken,
    /// What is waited for at the end.
    pub tasks: TaskTracker,
    pub ready: Readiness,
    /// Where the admin server listens.
    pub admin: Option<SocketAddr>,
    starting: Waiting,
    running: Arc<Running>,
    signals: Signals,
    drain_timeout: Duration,
}

/// The named tasks, and why the service cannot go on.
#[derive(Debug, Default)]
struct Running {
    names: Mutex<BTreeMap<u64, String>>,
    failure: Mutex<Option<anyhow::Error>>,
    failed: CancellationToken,
}

/// A named task that has not ended; takes the name off the list however the task ends.
struct Named {
    running: Arc<Running>,
    number: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            log: logs::Config::default(),
            admin: None,
            drain_timeout: Duration::from_secs(30),
            unready_after: UNREADY_AFTER,
        }
    }
}

/// Starts logs, metrics, the admin server and signal handling, in this order. What the process makes is not for everybody from here on.
pub async fn start(name: &str, config: &Config) -> anyhow::Result<Service> {
    private::restrict_umask();
    logs::init(&config.log)?;
    let metrics = telemetry::install()?;
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let ready = Readiness::new(config.unready_after);
    let starting = ready.wait_for("start");
    let signals = Signals::register()?;
    let admin = match config.admin {
        Some(address) => {
            let admin = admin::Admin { metrics: metrics.clone(), ready: ready.clone() };
            Some(admin::serve(address, admin, shutdown.clone(), &tasks).await?)
        }
        None => None,
    };
    tasks.spawn(telemetry::upkeep(metrics, shutdown.clone()));
    tracing::info!(module = name, version = crate::VERSION, ?admin, "started");
    let drain_timeout = config.drain_timeout;
    Ok(Service { shutdown, tasks, ready, admin, starting, running: Arc::default(), signals, drain_timeout })
}

impl Service {
    /// Runs `work` as a task that is named when it outlives the draining.
    pub fn spawn<F>(&self, name: &str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let named = self.running.enter(name);
        self.tasks.spawn(async move {
            work.await;
            drop(named);
        });
    }

    /// Makes the service ready only while `look` finds that something works.
    pub fn depend_on<L, F>(&self, probe: Probe, look: L)
    where
        L: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let part = self.ready.depend_on(probe.what);
        self.tasks.spawn(probe.run(part, look, self.shutdown.clone()));
    }

    /// Runs `work`, without which the service is of no use: when it ends before the shutdown, with
    /// an error or without, the service ends too, as a failure.
    pub fn essential<F, E>(&self, name: &str, work: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error> + Send + 'static,
    {
        let named = self.running.enter(name);
        let (running, shutdown, name) = (self.running.clone(), self.shutdown.clone(), name.to_owned());
        let task = tokio::spawn(work);
        self.tasks.spawn(async move {
            let failure = match task.await {
                Ok(Ok(())) if shutdown.is_cancelled() => None,
                Ok(Ok(())) => Some(anyhow!("{name} ended")),
                Ok(Err(error)) => Some(error.into().context(format!("{name} failed"))),
                Err(panic) => Some(anyhow!("{name} panicked: {panic}")),
            };
            if let Some(failure) = failure {
                running.fail(failure);
            }
            drop(named);
        });
    }

    /// Runs until the service has to end, then drains it. An error is why it is not a clean end.
    pub async fn run(self) -> anyhow::Result<()> {
        let Service { shutdown, tasks, ready, starting, running, mut signals, drain_timeout, .. } = self;
        starting.ready();
        tell_systemd(NotifyState::Ready);
        tokio::select! {
            signal = signals.next() => tracing::info!(signal, "shutting down"),
            () = shutdown.cancelled() => tracing::info!("shutting down"),
            () = running.failed.cancelled() => tracing::error!("shutting down: an essential task ended"),
        }
        ready.close();
        tell_systemd(NotifyState::Stopping);
        shutdown.cancel();
        tasks.close();
        let drained = tokio::select! {
            () = tasks.wait() => Ok(()),
            () = tokio::time::sleep(drain_timeout) => {
                Err(anyhow!("not drained within {drain_timeout:?}; still running: {}", running.names(tasks.len())))
            }
            signal = signals.next() => {
                Err(anyhow!("ended by a second {signal}; still running: {}", running.names(tasks.len())))
            }
        };
        let failure = running.failure().take();
        match (failure, drained) {
            (None, drained) => drained,
            (Some(failure), Ok(())) => Err(failure),
            (Some(failure), Err(unfinished)) => Err(failure.context(unfinished)),
        }
    }
}

impl Running {
    fn enter(self: &Arc<Self>, name: &str) -> Named {
        let mut names = lock(&self.names);
        let number = names.last_key_value().map_or(0, |(last, _)| last + 1);
        names.insert(number, name.to_owned());
        Named { running: self.clone(), number }
    }

    /// Keeps the first failure: later ones are mostly its consequences.
    fn fail(&self, failure: anyhow::Error) {
        tracing::error!(error = format!("{failure:#}"), "an essential task ended");
        self.failure().get_or_insert(failure);
        self.failed.cancel();
    }

    fn failure(&self) -> MutexGuard<'_, Option<anyhow::Error>> {
        lock(&self.failure)
    }

    /// Of `total` tasks, the named ones by name.
    fn names(&self, total: usize) -> impl Display {
        let names = lock(&self.names);
        let mut listed: Vec<String> = names.values().cloned().collect();
        if let Some(unnamed @ 1..) = total.checked_sub(listed.len()) {
            listed.push(format!("{unnamed} unnamed"));
        }
        listed.join(", ")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        lock(&self.running.names).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `key=value`, as a flag gives it.
pub(crate) fn assignment(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').with_context(|| format!("{text:?} is not key=value"))?;
    if key.is_empty() {
        bail!("{text:?} names no key");
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Where systemd waits for it; nothing happens elsewhere.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests;
