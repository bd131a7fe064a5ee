//! The service's side of the conversation: claim, show, set.

use std::sync::Arc;

use allowance::{calendar, grant};
use bus::{Bus, Table};
use names::Project;
use proto::quota::limit_name;
use proto::quota_set_request::To;
use proto::{
    QuotaBlock, QuotaClaimReply, QuotaClaimRequest, QuotaMetric, QuotaMode, QuotaSetReply, QuotaSetRequest,
    QuotaShowReply, QuotaShowRequest, QuotaStatus, QuotaWant, QuotaWindow, Refusal, refusal,
};
use tonic::Status;

use crate::config::{Amount, is_region};
use crate::ledger::{Account, Ledger};
use crate::limits::{Limit, LimitKey, Limits};
use crate::{live, meters};

/// Of what a spender calls itself, in bytes.
const SPENDER_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Service {
    limits: Arc<Limits>,
    table: Table,
    ledger: Ledger,
    spenders: u64,
}

/// Whose limit a request is about.
struct Asked {
    project: Project,
    region: String,
}

impl Service {
    pub(crate) fn new(limits: Arc<Limits>, table: Table, bus: &Bus, spenders: u32) -> Service {
        Service { limits, table, ledger: Ledger::new(bus), spenders: spenders.into() }
    }

    pub(crate) async fn claim(
        self: Arc<Self>,
        request: QuotaClaimRequest,
    ) -> Result<QuotaClaimReply, Status> {
        let claimed = self.blocks(request).await;
        if claimed.is_err() {
            meters::failed();
        }
        Ok(QuotaClaimReply { blocks: claimed? })
    }

    async fn blocks(&self, request: QuotaClaimRequest) -> Result<Vec<QuotaBlock>, Status> {
        if !self.limits.are_known() {
            return Err(Refusal::Unreachable.status("claim: the live limits were not read so far"));
        }
        let metric = metric(request.metric())?;
        let asked = Asked::new(&request.project, request.region)?;
        if request.spender.is_empty() || request.spender.len() > SPENDER_MAX {
            return Err(Refusal::Invalid.status("claim: who spends is not named, or too long"));
        }
        if request.wants.len() > QuotaWindow::ALL.len() {
            return Err(Refusal::Invalid.status("claim: more windows than there are"));
        }
        let spenders = self.spenders.max(self.ledger.heard(&request.spender));
        let now = calendar::unix_ms();
        let blocks = request.wants.iter().map(|want| self.block(&asked, metric, want, spenders, now));
        futures::future::try_join_all(blocks).await
    }

    async fn block(
        &self,
        asked: &Asked,
        metric: QuotaMetric,
        want: &QuotaWant,
        spenders: u64,
        now: u64,
    ) -> Result<QuotaBlock, Status> {
        let window = window(want.window())?;
        let (at, Limit { amount, mode }) =
            (calendar::window(window, now), self.limits.of(&asked.project, metric, window).limit);
        let (account, limit) = (asked.account(metric, window, at.number), amount.limit());
        let known = match limit {
            Some(_) => self.ledger.drawn(&account).await?,
            None => 0,
        };
        let drawn = grant::to_draw(want.amount, want.need, limit, known, spenders);
        let sum = match drawn {
            0 => known,
            drawn => self.ledger.draw(&account, drawn).await?,
        };
        let granted = grant::granted(limit, sum, drawn);
        meters::granted(metric, window, granted, granted < want.need);
        Ok(QuotaBlock {
            window: window.into(),
            number: at.number,
            ends_in_ms: at.ends_in_ms,
            granted,
            limit,
            mode: mode.into(),
            left: limit.map_or(0, |limit| limit.saturating_sub(sum)),
            safe: grant::safe_share(limit, spenders),
        })
    }

    pub(crate) async fn show(self: Arc<Self>, request: QuotaShowRequest) -> Result<QuotaShowReply, Status> {
        let asked = Asked::new(&request.project, request.region)?;
        let now = calendar::unix_ms();
        let mut limits = Vec::new();
        for metric in QuotaMetric::ALL {
            for window in QuotaWindow::ALL {
                let at = calendar::window(window, now);
                let holds = self.limits.of(&asked.project, metric, window);
                let used = self.ledger.drawn_now(&asked.account(metric, window, at.number)).await?;
                limits.push(QuotaStatus {
                    metric: metric.into(),
                    window: window.into(),
                    name: limit_name(metric, window),
                    limit: holds.limit.amount.limit(),
                    mode: holds.limit.mode.into(),
                    source: holds.source.to_owned(),
                    used,
                    ends_in_ms: at.ends_in_ms,
                });
            }
        }
        Ok(QuotaShowReply { limits })
    }

    pub(crate) async fn set(self: Arc<Self>, request: QuotaSetRequest) -> Result<QuotaSetReply, Status> {
        let (metric, window) = (metric(request.metric())?, window(request.window())?);
        let mode = QuotaMode::try_from(request.mode)
            .map_err(|_| Refusal::Invalid.status("set: the mode is neither enforce nor shadow"))?;
        let project = Some(request.project).filter(|project| !project.is_empty());
        let project = project.as_deref().map(refusal::project).transpose()?;
        let key = LimitKey { project, metric, window };
        let amount = match request.to {
            Some(To::Limit(limit)) => Amount::Limit(limit),
            Some(To::Unlimited(true)) => Amount::Unlimited,
            Some(To::Forget(true)) => {
                self.table.delete(&live::write_key(&key)).await?;
                tracing::info!(key = live::write_key(&key), "a live limit was taken back");
                self.limits.set(key, None);
                return Ok(QuotaSetReply {});
            }
            _ => return Err(Refusal::Invalid.status("set: no limit is named")),
        };
        let limit = Limit { amount, mode };
        self.table.put(&live::write_key(&key), live::write_value(limit).into()).await?;
        tracing::info!(key = live::write_key(&key), limit = %amount, ?mode, "a live limit was set");
        // What this process answers next knows of it; the others hear of it in a moment.
        self.limits.set(key, Some(limit));
        Ok(QuotaSetReply {})
    }
}

impl Asked {
    fn new(project: &str, region: String) -> Result<Asked, Status> {
        let project = refusal::project(project)?;
        if !is_region(&region) {
            let refusal =
                "the region's name is too long, or has other than letters, digits, `-`, `_` and `.`";
            return Err(Refusal::Invalid.status(refusal));
        }
        Ok(Asked { project, region })
    }

    fn account(&self, metric: QuotaMetric, window: QuotaWindow, number: u64) -> Account {
        let region = if window == QuotaWindow::Day { String::new() } else { self.region.clone() };
        Account { project: self.project.to_string(), region, metric, window, number }
    }
}

fn metric(metric: QuotaMetric) -> Result<QuotaMetric, Status> {
    match metric {
        QuotaMetric::Unspecified => Err(Refusal::Invalid.status("the metric is not known")),
        known => Ok(known),
    }
}

fn window(window: QuotaWindow) -> Result<QuotaWindow, Status> {
    match window {
        QuotaWindow::Unspecified => Err(Refusal::Invalid.status("the window is not known")),
        known => Ok(known),
    }
}
