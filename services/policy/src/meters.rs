//! What is counted of each policy.
//!
//! | metric | labels | |
//! |---|---|---|
//! | `sluice_policy_evaluations_total` | `policy`, `decision`, `mode` | verdicts, those of failure rules included |
//! | `sluice_policy_plans_total` | `policy`, `outcome`, `mode` | prefetch plans; the outcome is `plan` or the kind of failure |
//! | `sluice_policy_failures_total` | `policy`, `kind` | `trap`, `time`, `memory`, `stack`, `output`, `nonsense`, `error`, `host`; `bypassed` and `late` without a call |
//! | `sluice_policy_duration_seconds` | `policy` | of calls |
//! | `sluice_policy_cpu_seconds` | `policy` | of a processor, of calls |
//! | `sluice_policy_memory_high_water_bytes` | `policy` | of one call |
//! | `sluice_policy_circuit_open` | `policy` | 1: it failed too often and rests |
//! | `sluice_policy_log_lines_dropped_total` | `policy` | beyond what one call may log |
//! | `sluice_policy_generation` | | of the set in use |
//! | `sluice_policy_reloads_total` | `outcome` | `done`, `failed` |
//! | `sluice_policy_unrecorded_total` | | decisions that could not be written down, or told to `sluice policy record` |

use proto::{Decision, Verdict};

use crate::host::Spent;

/// `memory`: the most that any call has used, in bytes.
pub(crate) fn spent(policy: &str, spent: &Spent, memory: usize) {
    metrics::histogram!("sluice_policy_duration_seconds", "policy" => policy.to_owned()).record(spent.time);
    metrics::histogram!("sluice_policy_cpu_seconds", "policy" => policy.to_owned()).record(spent.cpu);
    high_water(policy, memory);
}

pub(crate) fn high_water(policy: &str, memory: usize) {
    metrics::gauge!("sluice_policy_memory_high_water_bytes", "policy" => policy.to_owned())
        .set(memory as f64);
}

pub(crate) fn judged(verdict: &Verdict) {
    let decision = match verdict.decision() {
        Decision::Accept => "accept",
        Decision::Refuse => "refuse",
        Decision::Abstain => "abstain",
    };
    let (policy, mode) = (verdict.policy.clone(), mode(verdict.monitored));
    metrics::counter!("sluice_policy_evaluations_total", "policy" => policy, "decision" => decision, "mode" => mode)
        .increment(1);
    if !verdict.failure.is_empty() {
        failed(&verdict.policy, &verdict.failure);
    }
}

pub(crate) fn planned(policy: &str, monitored: bool, failure: Option<&str>) {
    let (name, outcome) = (policy.to_owned(), failure.unwrap_or("plan").to_owned());
    metrics::counter!("sluice_policy_plans_total", "policy" => name, "outcome" => outcome, "mode" => mode(monitored))
        .increment(1);
    if let Some(kind) = failure {
        failed(policy, kind);
    }
}

pub(crate) fn circuit(policy: &str, open: bool) {
    metrics::gauge!("sluice_policy_circuit_open", "policy" => policy.to_owned()).set(u8::from(open));
}

pub(crate) fn loaded(generation: u64) {
    metrics::gauge!("sluice_policy_generation").set(generation as f64);
    metrics::counter!("sluice_policy_reloads_total", "outcome" => "done").increment(1);
}

pub(crate) fn not_loaded() {
    metrics::counter!("sluice_policy_reloads_total", "outcome" => "failed").increment(1);
}

pub(crate) fn unrecorded() {
    metrics::counter!("sluice_policy_unrecorded_total").increment(1);
}

fn mode(monitored: bool) -> &'static str {
    if monitored { "monitor" } else { "enforce" }
}

fn failed(policy: &str, kind: &str) {
    let (policy, kind) = (policy.to_owned(), kind.to_owned());
    metrics::counter!("sluice_policy_failures_total", "policy" => policy, "kind" => kind).increment(1);
}
