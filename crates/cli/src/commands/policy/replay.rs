//! `sluice policy replay`: recorded decisions, taken again by other policies.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use policy::Trial;
use policy::record::{Entry, Judgement, Plan, Said};
use serde::Serialize;

use super::super::Context;
use super::{ELIGIBILITY, Plugin};
use crate::{exit, render};

/// A line of a record, in bytes: a decision about the largest image is smaller.
const LINE_MAX: u64 = 4 * 1024 * 1024;

/// Ask other policies what was asked before, and show where they decide differently; exit code 5 when they do
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice --set policy.record.file=/var/log/sluice/decisions serve
                                                 write decisions down (also by the policy service);
                                                 of services that run: sluice policy record
  sluice policy replay /var/log/sluice/decisions --plugin mine.wasm --as mine
                                                 what would the new version of `mine` have said?
  sluice --config new.toml policy replay /var/log/sluice/decisions
                                                 and the whole policy set of other settings?")]
pub struct ReplayArgs {
    /// What `sluice policy record` wrote; what `policy.record.file` names, and the file of the same name with .1 before it
    #[arg(required = true, value_name = "RECORD")]
    records: Vec<PathBuf>,
    /// Ask this plugin instead of the policy set of the settings
    #[arg(long, value_name = "PLUGIN", requires = "policy")]
    plugin: Option<PathBuf>,
    /// The recorded policy that the plugin is compared with, by its name in the policy set
    #[arg(long = "as", value_name = "NAME", requires = "plugin")]
    policy: Option<String>,
    /// The plugin's settings, as a TOML file
    #[arg(long, value_name = "FILE", requires = "plugin")]
    settings: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
struct Replayed {
    /// Decisions that were taken again.
    decisions: u64,
    different: u64,
    /// Lines that are no decision: a process was killed while it wrote, or the disk was full.
    unreadable: u64,
    differences: Vec<Difference>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Difference {
    image: String,
    was: String,
    now: String,
    times: u64,
}

/// Whom a record is put to.
struct Asked {
    trial: Trial,
    /// The recorded policy that one plugin stands for; absent: the whole set.
    stands_for: Option<String>,
    judges: bool,
    plans: bool,
}

pub(super) async fn run(context: &Context, args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let policies = context.settings.policy.clone();
    let replay = move || {
        let asked = match args.plugin {
            Some(file) => {
                let plugin = Plugin { file, settings: args.settings };
                let trial = Trial::of_plugin(plugin.local()?, plugin.settings()?, policies.limits)?;
                Asked::one(trial, args.policy)
            }
            None => Asked::set(Trial::of_config(&policies)?),
        };
        let mut counted = BTreeMap::new();
        let mut replayed = Replayed::default();
        for record in &args.records {
            let reading = || format!("read the record {}", record.display());
            asked.replay(record, &mut replayed, &mut counted).with_context(reading)?;
        }
        let of = |((image, was, now), times)| Difference { image, was, now, times };
        replayed.differences = counted.into_iter().map(of).collect();
        anyhow::Ok(replayed)
    };
    let replayed = tokio::task::spawn_blocking(replay).await.context("replaying")??;
    match context.global.json {
        true => render::json(&replayed)?,
        false => render::line(described(&replayed).trim_end())?,
    }
    Ok(if replayed.different == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::DIFFERENT) })
}

impl Asked {
    fn one(trial: Trial, stands_for: Option<String>) -> Asked {
        let judges = trial.policies().first().is_some_and(|policy| policy.world == ELIGIBILITY);
        Asked { trial, stands_for, judges, plans: !judges }
    }

    fn set(trial: Trial) -> Asked {
        Asked { trial, stands_for: None, judges: true, plans: true }
    }

    fn replay(
        &self,
        record: &Path,
        replayed: &mut Replayed,
        counted: &mut BTreeMap<(String, String, String), u64>,
    ) -> anyhow::Result<()> {
        let mut lines = BufReader::new(File::open(record)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? as u64;
            if length == 0 {
                return Ok(());
            }
            ensure!(length < LINE_MAX, "a line is longer than {LINE_MAX} bytes: this is no record");
            let Ok(entry) = serde_json::from_slice::<Entry>(&line) else {
                replayed.unreadable += 1;
                continue;
            };
            let image = match &entry {
                Entry::Judged { facts, .. } | Entry::Planned { facts, .. } => facts.image.clone(),
            };
            let Some((was, now)) = self.again(entry) else { continue };
            replayed.decisions += 1;
            if was != now {
                replayed.different += 1;
                *counted.entry((image.unwrap_or_default().reference, was, now)).or_default() += 1;
            }
        }
    }

    /// What was said, and what is said now; nothing of what was not asked of the one that is compared.
    fn again(&self, entry: Entry) -> Option<(String, String)> {
        match entry {
            Entry::Judged { facts, said } if self.judges => {
                let was = match &self.stands_for {
                    Some(name) => shown(said.verdicts.iter().find(|verdict| verdict.policy == *name)?),
                    None => together(&said),
                };
                let now = Judgement::from(&self.trial.judge(facts));
                let now = match &self.stands_for {
                    Some(_) => shown(now.verdicts.first()?),
                    None => together(&now),
                };
                Some((was, now))
            }
            Entry::Planned { facts, starts, chunks, said, monitored } if self.plans => {
                let was = match &self.stands_for {
                    Some(name) => said.iter().chain(&monitored).find(|plan| plan.policy == *name),
                    None => said.as_ref(),
                };
                if was.is_none() && said.is_some() {
                    return None;
                }
                let now = self.trial.plan(facts, starts, chunks).ok();
                Some((planned(was), planned(now.as_ref().map(Plan::from).as_ref())))
            }
            _ => None,
        }
    }
}

/// Of a whole set: the decision, and who refused.
fn together(said: &Judgement) -> String {
    let refusals =
        said.verdicts.iter().filter(|verdict| verdict.decision == said.decision && !verdict.monitored);
    let refusals: Vec<String> = refusals
        .filter(|verdict| !verdict.reason.is_empty())
        .map(|verdict| format!("{}: {}", verdict.policy, verdict.reason))
        .collect();
    match refusals.is_empty() {
        true => said.decision.clone(),
        false => format!("{} ({})", said.decision, refusals.join(", ")),
    }
}

fn shown(said: &Said) -> String {
    let failed = if said.failure.is_empty() { String::new() } else { format!(", failed: {}", said.failure) };
    match said.reason.is_empty() {
        true => format!("{}{failed}", said.decision),
        false => format!("{} ({}{failed})", said.decision, said.reason),
    }
}

fn planned(plan: Option<&Plan>) -> String {
    let Some(plan) = plan else { return "no plan".to_owned() };
    let bandwidth = plan.bandwidth.map(|bytes| format!(", {bytes} bytes/s")).unwrap_or_default();
    let items = serde_json::to_string(&plan.items).unwrap_or_default();
    format!("{}{bandwidth} {items}", plan.mode)
}

fn described(replayed: &Replayed) -> String {
    let Replayed { decisions, different, unreadable, differences } = replayed;
    let mut text = format!("{different} of {decisions} decisions differ\n");
    if *unreadable > 0 {
        text += &format!("{unreadable} lines could not be read\n");
    }
    if !differences.is_empty() {
        let row = |one: &Difference| {
            let [image, was, now] = [&one.image, &one.was, &one.now].map(|text| render::printable(text));
            vec![image, one.times.to_string(), was, now]
        };
        let rows = differences.iter().map(row).collect();
        text += &format!("\n{}", render::table(&["image", "times", "was", "now"], &[1], rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_plan_is_compared_with_that_of_the_policy_it_stands_for_also_of_one_without_a_say() {
        let of = |policy: &str, mode: &str| Plan {
            policy: policy.to_owned(),
            mode: mode.to_owned(),
            items: Vec::new(),
            bandwidth: None,
            reason: String::new(),
        };
        let was = |name: Option<&str>, said: Option<Plan>| {
            let config = policy::Config {
                set: toml::from_str("eligibility = []\nprefetch = []").unwrap(),
                ..policy::Config::default()
            };
            let trial = Trial::of_config(&config).unwrap();
            let asked = Asked { stands_for: name.map(str::to_owned), ..Asked::set(trial) };
            let monitored = vec![of("shadow", "everything")];
            let facts = proto::Facts::default();
            asked.again(Entry::Planned { facts, starts: 1, chunks: 1, said, monitored }).map(|(was, _)| was)
        };
        let said = || Some(of("mine", "nothing"));
        assert_eq!(was(None, said()).unwrap(), "nothing []");
        assert_eq!(was(Some("mine"), said()).unwrap(), "nothing []");
        assert_eq!(was(Some("shadow"), said()).unwrap(), "everything []");
        assert_eq!(was(Some("other"), said()), None, "it was not asked");
        assert_eq!(was(Some("other"), None).unwrap(), "no plan");
    }
}
