//! Looks again and again whether something that a service depends on works.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::readiness::Part;

/// How something is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// As the reason names it: `bus`, `store`.
    pub what: &'static str,
    /// The metric that is 1 while it works and 0 while it does not, at once.
    pub gauge: &'static str,
    /// Between the end of one look and the next.
    pub every: Duration,
    /// How long one look may take.
    pub within: Duration,
}

impl Probe {
    /// Looks at what the connection itself knows, which costs nothing.
    pub const BUS: Probe = Probe {
        what: "bus",
        gauge: "sluice_bus_connected",
        every: Duration::from_secs(1),
        within: Duration::from_secs(5),
    };
    /// One small question each time.
    pub const STORE: Probe = Probe {
        what: "store",
        gauge: "sluice_store_reachable",
        every: Duration::from_secs(10),
        within: Duration::from_secs(5),
    };

    /// Runs until `shutdown`. One look at a time: one that hangs is waited for, and no other begun beside it.
    pub(crate) async fn run<L, F>(self, part: Part, look: L, shutdown: CancellationToken)
    where
        L: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let gauge = metrics::gauge!(self.gauge);
        gauge.set(0.0);
        let mut failed = false;
        let forever = async {
            let mut under_way: Option<AbortOnDropHandle<Result<(), String>>> = None;
            loop {
                let begin = || AbortOnDropHandle::new(tokio::spawn(look()));
                let mut looking = under_way.take().unwrap_or_else(begin);
                let found = match timeout(self.within, &mut looking).await {
                    Ok(ended) => ended.unwrap_or_else(|error| Err(format!("the look at it ended: {error}"))),
                    Err(_) => {
                        under_way = Some(looking);
                        Err(format!("no answer within {:?}", self.within))
                    }
                };
                gauge.set(if found.is_ok() { 1.0 } else { 0.0 });
                self.tell(&found, &mut failed);
                match found {
                    Ok(()) => part.works(),
                    Err(reason) => part.fails(reason),
                }
                sleep(self.every).await;
            }
        };
        shutdown.run_until_cancelled(forever).await;
    }

    /// Once for each change.
    fn tell(&self, found: &Result<(), String>, failed: &mut bool) {
        match found {
            Ok(()) if *failed => tracing::info!(part = self.what, "works again"),
            Err(error) if !*failed => tracing::warn!(part = self.what, error, "does not work"),
            _ => {}
        }
        *failed = found.is_err();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::watch;

    use super::*;
    use crate::Readiness;

    const PROBE: Probe = Probe {
        what: "store",
        gauge: "test_reachable",
        every: Duration::from_secs(5),
        within: Duration::from_secs(2),
    };

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_a_failure_and_has_no_company() {
        let readiness = Readiness::new(Duration::from_secs(10));
        let (hang, hangs) = watch::channel(false);
        let looks = Arc::new(AtomicUsize::new(0));
        let look = {
            let looks = looks.clone();
            move || {
                looks.fetch_add(1, Ordering::Relaxed);
                let mut hangs = hangs.clone();
                async move { hangs.wait_for(|hangs| !hangs).await.map(drop).map_err(|error| error.to_string()) }
            }
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(PROBE.run(readiness.depend_on("store"), look, shutdown.clone()));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(readiness.check(), Ok(()));
        hang.send_replace(true);
        sleep(Duration::from_secs(60)).await;
        let reason = readiness.check().unwrap_err();
        assert!(reason.starts_with("store: no answer within 2s, for "), "{reason}");
        assert_eq!(looks.load(Ordering::Relaxed), 2);
        hang.send_replace(false);
        sleep(PROBE.every + PROBE.within).await;
        assert_eq!(readiness.check(), Ok(()));
        shutdown.cancel();
        task.await.unwrap();
    }
}
