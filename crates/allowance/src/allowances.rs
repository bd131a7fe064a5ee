//! The shell: purses by project and metric, and the claims that fill them.
//!
//! One claim of a purse at a time, in a task of its own: a reader that goes away takes no answer with it. Whoever finds tickets never
//! waits; whoever finds none waits for the claim, at most [`WAIT_MAX`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bus::Bus;
use proto::quota::{Refused, limit_name};
use proto::refusal::Exhausted;
use proto::{QuotaBlock, QuotaClaimRequest, QuotaMetric, QuotaWindow, Refusal};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::Status;

use crate::config::{Config, Unanswered};
use crate::meters::{self, Meters};
use crate::purse::{CLAIM_PAUSE_MS, Class, Purse, Spend};

/// How long the quota service may take to answer.
const CLAIM_WITHIN: Duration = Duration::from_secs(1);
/// How long somebody waits for tickets, those before them in the line included.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Projects and metrics that are remembered; beyond it those that nobody uses are forgotten.
const PURSES_MAX: usize = 10_000;
/// Those who were refused do not come back all at once.
const RETRY_SPREAD_MS: u64 = 2_000;

/// The allowances of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Allowances {
    shared: Arc<Shared>,
    accounts: Arc<RwLock<Accounts>>,
}

/// By project.
type Accounts = HashMap<QuotaMetric, HashMap<String, Arc<Account>>>;

#[derive(Debug)]
struct Shared {
    bus: Bus,
    config: Config,
    /// Unique to the process.
    spender: String,
    started: Instant,
}

/// Spends the allowance of one project and metric. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spender {
    account: Arc<Account>,
}

#[derive(Debug)]
struct Account {
    shared: Arc<Shared>,
    project: String,
    metric: QuotaMetric,
    purse: Purse,
    /// Held by who claims.
    claims: Arc<Mutex<()>>,
    /// Somebody claims in the background.
    drawing: AtomicBool,
    meters: Meters,
}

impl Allowances {
    pub fn new(bus: Bus, config: Config) -> Allowances {
        let spender = format!("{:016x}", rand::random::<u64>());
        let shared = Arc::new(Shared { bus, config, spender, started: Instant::now() });
        Allowances { shared, accounts: Arc::default() }
    }

    /// For what is spent several times: looking it up takes a lock, spending does not.
    pub fn of(&self, project: &str, metric: QuotaMetric) -> Spender {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(&metric).and_then(|accounts| accounts.get(project)) {
            return Spender { account: account.clone() };
        }
        drop(accounts);
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        let of_metric = accounts.entry(metric).or_default();
        if of_metric.len() >= PURSES_MAX {
            of_metric.retain(|_, account| Arc::strong_count(account) > 1);
        }
        let account = of_metric
            .entry(project.to_owned())
            .or_insert_with(|| Arc::new(Account::new(self.shared.clone(), project, metric)));
        Spender { account: account.clone() }
    }
}

impl Spender {
    /// Spends `amount`, or says with which limit it collides: `RESOURCE_EXHAUSTED` with `QuotaFailure` and `RetryInfo`.
    pub async fn take(&self, amount: u64, class: Class) -> Result<(), Status> {
        match self.account.spend(amount, class) {
            Spend::Draw => self.account.take_later(amount, class).await,
            spend => self.account.told(spend),
        }
    }

    /// Spends `amount` if that takes no question; false also when it must be asked for first.
    pub fn try_take(&self, amount: u64, class: Class) -> bool {
        matches!(self.account.spend(amount, class), Spend::Spent { .. })
    }
}

impl Account {
    fn new(shared: Arc<Shared>, project: &str, metric: QuotaMetric) -> Account {
        Account {
            project: project.to_owned(),
            metric,
            purse: Purse::new(metric, shared.config.unanswered),
            claims: Arc::default(),
            drawing: AtomicBool::new(false),
            meters: Meters::new(project, metric),
            shared,
        }
    }

    fn spend(self: &Arc<Self>, amount: u64, class: Class) -> Spend {
        let now = self.now();
        let spend = self.purse.spend(amount, class, now);
        if let Spend::Spent { draw, over } = spend {
            self.meters.spent.increment(amount);
            if over {
                self.meters.shadow_refused.increment(1);
            }
            if draw && self.purse.may_ask(now) && !self.drawing.swap(true, Ordering::AcqRel) {
                self.draw_in_background();
            }
        }
        spend
    }

    /// Spends once there are tickets.
    async fn take_later(self: &Arc<Self>, amount: u64, class: Class) -> Result<(), Status> {
        let taking = async {
            loop {
                let turn = self.claims.clone().lock_owned().await;
                // Who was before may have brought enough.
                match self.spend(amount, class) {
                    Spend::Draw => {}
                    spend => return spend,
                }
                if !self.purse.may_ask(self.now()) {
                    self.purse.unanswered(self.now());
                    return self.spend(amount, class);
                }
                let account = self.clone();
                let claiming = tokio::spawn(async move {
                    let answered = account.claim(amount).await;
                    drop(turn);
                    answered
                });
                let answered = claiming.await.unwrap_or(false);
                match self.spend(amount, class) {
                    // Others were faster.
                    Spend::Draw if answered => {}
                    spend => return spend,
                }
            }
        };
        match timeout(WAIT_MAX, taking).await.unwrap_or(Spend::Draw) {
            Spend::Draw if self.shared.config.unanswered == Unanswered::Open => Ok(()),
            Spend::Draw => Err(self.refusal(self.purse.limit(), QuotaWindow::Minute, CLAIM_PAUSE_MS, true)),
            spend => self.told(spend),
        }
    }

    fn draw_in_background(self: &Arc<Self>) {
        let account = self.clone();
        tokio::spawn(async move {
            let turn = account.claims.clone().lock_owned().await;
            account.claim(0).await;
            drop(turn);
            account.drawing.store(false, Ordering::Release);
        });
    }

    /// Asks for tickets; whether that was answered. One at a time.
    async fn claim(&self, need: u64) -> bool {
        let asked_at = self.now();
        let request = QuotaClaimRequest {
            project: self.project.clone(),
            region: self.shared.config.region.clone(),
            metric: self.metric.into(),
            spender: self.shared.spender.clone(),
            wants: self.purse.wants(need, asked_at),
        };
        // Once: what a lost answer brought is lost, and asking again would lose as much again.
        let answer = self.shared.bus.call_once(request, CLAIM_WITHIN).await;
        meters::claimed(answer.is_ok());
        match answer {
            Ok(reply) => {
                self.purse.answered(&reply.blocks, asked_at);
                reply.blocks.iter().for_each(|block| self.show(block));
                true
            }
            Err(status) => {
                let (project, metric) = (&self.project, self.metric.code());
                tracing::debug!(project, metric, error = %status.message(), "a claim of quota was not answered");
                self.purse.unanswered(self.now());
                false
            }
        }
    }

    fn show(&self, block: &QuotaBlock) {
        self.meters.remaining(block.window(), block.limit.map(|_| block.left));
    }

    fn told(&self, spend: Spend) -> Result<(), Status> {
        match spend {
            Spend::Refused { window, limit, ends_in_ms } => {
                Err(self.refusal(limit, window, ends_in_ms, false))
            }
            Spend::Spent { .. } | Spend::Draw => Ok(()),
        }
    }

    fn refusal(&self, value: u64, window: QuotaWindow, wait_ms: u64, unanswered: bool) -> Status {
        self.meters.refused.increment(1);
        let spread = rand::random_range(0..RETRY_SPREAD_MS);
        let retry = Duration::from_millis(wait_ms.saturating_add(spread));
        let (project, metric, limit) =
            (self.project.as_str(), self.metric.code(), limit_name(self.metric, window));
        let status = Refusal::quota(&Exhausted { project, metric, limit: &limit, value, retry });
        match Refused::of(&status).filter(|_| unanswered) {
            Some(refused) => refused.status(format!(
                "project {project} may use no more {metric}: the quota service does not answer, and what may be used without it is used up"
            )),
            None => status,
        }
    }

    /// Milliseconds since the process began to spend.
    fn now(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
