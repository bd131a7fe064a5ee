//! What was decided, written down: one line of JSON for each question, with the facts and what every policy said. It is for
//! `sluice policy replay`, which asks other policies the same.
//!
//! [`file`] writes lines where the settings say so; [`live`] tells decisions to whoever asks for them, `sluice policy record`, which
//! writes the same lines. Facts carry no credential, so neither do records.

mod file;
mod live;

use std::collections::BTreeMap;
use std::sync::Arc;

use bus::Bus;
use proto::plan_item::Item;
use proto::plan_reply::Mode;
use proto::recorded_decision::{self, Planned as ToldPlan};
use proto::{Decision, Facts, JudgeReply, PlanReply, RecordReply, RecordRequest, RecordedDecision, Verdict};
use serde::{Deserialize, Serialize};

use file::Recorder;
use live::Live;

use crate::host::plan::Profile;

pub use file::RecordConfig;
pub use live::TOLD_FOR_MAX;

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    Judged {
        facts: Facts,
        said: Judgement,
    },
    Planned {
        facts: Facts,
        starts: u32,
        chunks: u32,
        said: Option<Plan>,
        /// Of those policies that have no say.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        monitored: Vec<Plan>,
    },
}

/// What the policies said of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Of all together: `accept` or `refuse`.
    pub decision: String,
    /// Of the policy set.
    pub generation: u64,
    pub verdicts: Vec<Said>,
}

/// What one policy said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    pub policy: String,
    pub version: String,
    pub digest: String,
    /// `accept`, `refuse` or `abstain`.
    pub decision: String,
    pub reason: String,
    pub message: String,
    pub details: BTreeMap<String, String>,
    /// It had no say.
    pub monitored: bool,
    /// The kind of failure; empty: the policy itself decided.
    pub failure: String,
    pub microseconds: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub policy: String,
    pub mode: String,
    pub items: Vec<Planned>,
    pub bandwidth: Option<u64>,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Planned {
    /// Chunks of the profile: the first one's number, and how many.
    Chunks(u32, u32),
    Path(String),
}

impl Entry {
    /// The line of a decision; none of what lacks something, which no service of ours tells.
    pub fn of(decision: RecordedDecision) -> Option<Entry> {
        let RecordedDecision { facts, said, .. } = decision;
        let facts = facts?;
        Some(match said? {
            recorded_decision::Said::Judged(reply) => Entry::Judged { facts, said: Judgement::from(&reply) },
            recorded_decision::Said::Planned(ToldPlan { starts, chunks, plan, monitored }) => {
                let monitored = monitored.iter().map(Plan::from).collect();
                Entry::Planned { facts, starts, chunks, said: plan.as_ref().map(Plan::from), monitored }
            }
        })
    }
}

/// All who write decisions down.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    file: Option<Arc<Recorder>>,
    live: Arc<Live>,
}

/// A decision that will be written down.
#[derive(Debug)]
pub(crate) struct Record {
    records: Records,
    facts: Facts,
}

impl Records {
    pub(crate) fn new(config: Option<RecordConfig>, bus: &Bus) -> anyhow::Result<Records> {
        let file = config.map(Recorder::new).transpose()?.map(Arc::new);
        Ok(Records { file, live: Arc::new(Live::new(bus)) })
    }

    pub(crate) fn tell(&self, request: RecordRequest) -> RecordReply {
        self.live.ask(request)
    }

    /// Only what is written down is kept as it came.
    pub(crate) fn begin(&self, facts: &Facts) -> Option<Record> {
        let wanted = self.file.is_some() || self.live.is_asked();
        wanted.then(|| Record { records: self.clone(), facts: facts.clone() })
    }
}

impl Record {
    pub(crate) fn judged(self, reply: &JudgeReply) {
        self.end(recorded_decision::Said::Judged(reply.clone()));
    }

    pub(crate) fn planned(self, profile: Profile, plan: Option<PlanReply>, monitored: Vec<PlanReply>) {
        let Profile { starts, chunks } = profile;
        self.end(recorded_decision::Said::Planned(ToldPlan { starts, chunks, plan, monitored }));
    }

    fn end(self, said: recorded_decision::Said) {
        let Record { records, facts } = self;
        let mut decision =
            RecordedDecision { facts: Some(facts), said: Some(said), ..RecordedDecision::default() };
        records.live.tell(&mut decision);
        if let (Some(file), Some(entry)) = (&records.file, Entry::of(decision)) {
            file.note(&entry);
        }
    }
}

impl From<&JudgeReply> for Judgement {
    fn from(reply: &JudgeReply) -> Judgement {
        Judgement {
            decision: decision(reply.decision()).to_owned(),
            generation: reply.generation,
            verdicts: reply.verdicts.iter().map(Said::from).collect(),
        }
    }
}

impl From<&Verdict> for Said {
    fn from(verdict: &Verdict) -> Said {
        let details = verdict.details.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect();
        Said {
            policy: verdict.policy.clone(),
            version: verdict.version.clone(),
            digest: verdict.digest.clone(),
            decision: decision(verdict.decision()).to_owned(),
            reason: verdict.reason.clone(),
            message: verdict.message.clone(),
            details,
            monitored: verdict.monitored,
            failure: verdict.failure.clone(),
            microseconds: verdict.microseconds,
        }
    }
}

impl From<&PlanReply> for Plan {
    fn from(plan: &PlanReply) -> Plan {
        let mode = match plan.mode() {
            Mode::ListedThenRest => "listed-then-rest",
            Mode::ListedOnly => "listed-only",
            Mode::Everything => "everything",
            Mode::Nothing => "nothing",
        };
        let items = plan.items.iter().filter_map(|item| match item.item.as_ref()? {
            Item::Chunks(run) => Some(Planned::Chunks(run.first, run.count)),
            Item::Path(path) => Some(Planned::Path(path.clone())),
        });
        Plan {
            policy: plan.policy.clone(),
            mode: mode.to_owned(),
            items: items.collect(),
            bandwidth: plan.bandwidth,
            reason: plan.reason.clone(),
        }
    }
}

fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Accept => "accept",
        Decision::Refuse => "refuse",
        Decision::Abstain => "abstain",
    }
}
