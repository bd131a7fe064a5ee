//! The quota service: hands out blocks of allowances, and says what the limits are.
//!
//! ```text
//! bus --> service     claim, show, set
//!            |----> limits     what holds for a project: live limits, then the configuration's
//!            |        `-- live     the table of live limits, watched
//!            `----> ledger     one counter for each project, metric and window
//! ```
//!
//! It keeps nothing but copies: any number of quota services draw from the same counters, and none of them can give what another
//! has given. The arithmetic is `allowance::grant`, beside what spends.

mod config;
mod ledger;
mod limits;
mod live;
mod meters;
mod service;

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bus::{Answer, Answering, Bus};
use lifecycle::Probe;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Amount, Config, MetricLimits, NotALimit, ProjectLimits, Settings};

use limits::Limits;
use service::Service;

/// Claims that are answered at the same time: each waits for one counter.
const CLAIMS_IN_FLIGHT: usize = 1024;
/// Questions of operators.
const QUESTIONS_IN_FLIGHT: usize = 16;

/// Whether the live limits were read: without them nothing is handed out.
pub const LIVE_LIMITS: Probe = Probe {
    what: "live limits",
    gauge: "sluice_quota_limits_known",
    every: Duration::from_secs(1),
    within: Duration::from_secs(5),
};

/// A quota service that answers. Dropped, it takes no more questions.
#[derive(Debug)]
pub struct Quota {
    limits: Arc<Limits>,
    _answering: Vec<Answering>,
}

impl Quota {
    /// Answers from when this returns; claims are refused until the live limits are known. Follows them until `shutdown`.
    pub async fn start(
        config: Config,
        bus: Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Quota> {
        config.check()?;
        let spenders = config.spenders;
        let limits = Arc::new(Limits::new(config));
        let table = bus.table(live::TABLE);
        let following = live::follow(table.watch(), limits.clone());
        tasks.spawn(async move { shutdown.run_until_cancelled(following).await });
        let at_most = |in_flight| Answer { in_flight, instance: None };
        let service = Arc::new(Service::new(limits.clone(), table, &bus, spenders));
        let answering = vec![
            bus.serve(&service, at_most(CLAIMS_IN_FLIGHT), Service::claim).await?,
            bus.serve(&service, at_most(QUESTIONS_IN_FLIGHT), Service::show).await?,
            bus.serve(&service, at_most(QUESTIONS_IN_FLIGHT), Service::set).await?,
        ];
        Ok(Quota { limits, _answering: answering })
    }

    /// Whether it can hand out anything.
    pub fn probe(&self) -> impl Fn() -> Ready<Result<(), String>> + Send + Sync + 'static {
        let limits = self.limits.clone();
        move || ready(if limits.are_known() { Ok(()) } else { Err("they were not read so far".to_owned()) })
    }
}
