//! Misbehaving policies beside good calls, many at a time: each fails as it should, the good calls are answered as ever, and memory
//! stays bounded. A process of its own: what it uses is what this uses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "it is for other tests, too")]
#[path = "../it/harness.rs"]
mod harness;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::{Decision, JudgeReply};

use harness::{DEADLINE, Harness, MISBEHAVIOURS, OWN_MISBEHAVIOURS, facts, hostile, misbehaving};

/// Resident memory that all of it adds at the most, in bytes: what the one policy may have that allocates without end, which it
/// does use, and twice as much for all else. What of it stays afterwards.
const GROWTH_MIN: u64 = 32 << 20;
const GROWTH_MAX: u64 = 3 * (64 << 20);
const KEPT_MAX: u64 = 32 << 20;
/// How often each policy has to fail; then it rests.
const FAILURES: usize = 3;
const GOOD_CALLS: usize = 2_000;

/// `VmRSS`, or `VmHWM`: the most that it ever was.
fn resident(which: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.trim_matches(|letter: char| !letter.is_ascii_digit()).parse::<u64>().unwrap() * 1024
}

/// A policy for each misbehaviour, so that none rests for another's failures, and a good one after them.
fn set() -> String {
    let ways = MISBEHAVIOURS.into_iter().chain(OWN_MISBEHAVIOURS).map(|(how, ..)| how);
    let bad = ways.map(|how| {
        let (source, settings) = (hostile(), format!("{{ only = '{how}' }}"));
        format!("[[eligibility]]\nname = '{how}'\nsource = '{source}'\non_failure = 'abstain'\nsettings = {settings}\n")
    });
    bad.collect::<String>() + "[[eligibility]]\nname = 'good'\nsource = 'builtin:size-limits'"
}

/// The kind of each policy's failure; those that are well are right.
fn failures(reply: &JudgeReply) -> HashMap<String, String> {
    let (bad, good): (Vec<_>, Vec<_>) =
        reply.verdicts.iter().partition(|verdict| !verdict.failure.is_empty());
    for verdict in good {
        assert_eq!(verdict.decision(), Decision::Accept, "{verdict:?}");
    }
    bad.into_iter().map(|verdict| (verdict.policy.clone(), verdict.failure.clone())).collect()
}

/// Asks until the policy has failed as often as it has to; nothing else ever fails but what rests.
async fn fails_as_it_should(harness: Arc<Harness>, how: &'static str, kind: &'static str) {
    let mut failed = 0;
    while failed < FAILURES {
        let mut failures = failures(&harness.judge(misbehaving(how)).await);
        if let Some(failure) = failures.remove(how).filter(|failure| failure != "bypassed") {
            assert_eq!(failure, kind, "{how}");
            failed += 1;
        }
        failures.retain(|_, failure| failure != "bypassed");
        assert!(failures.is_empty(), "beside {how}: {failures:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn good_calls_are_answered_beside_hostile_ones_and_memory_stays_bounded() {
    let mut config = harness::config(&set());
    // More than ask at once: nobody is told that all are in use.
    config.limits.calls_at_once = 16;
    let harness = Arc::new(Harness::start(config).await.unwrap());
    harness.judge(facts()).await;
    let (before, done) = (resident("VmRSS"), Arc::new(AtomicBool::new(false)));
    let hostile: Vec<_> = MISBEHAVIOURS
        .into_iter()
        .chain(OWN_MISBEHAVIOURS)
        .map(|(how, kind, _)| tokio::spawn(fails_as_it_should(harness.clone(), how, kind)))
        .collect();
    let good = tokio::spawn({
        let (harness, done) = (harness.clone(), done.clone());
        async move {
            let mut calls = 0;
            // As long as anything misbehaves, and then some.
            while calls < GOOD_CALLS || !done.load(Ordering::Relaxed) {
                let reply = harness.judge(facts()).await;
                assert_eq!(reply.decision(), Decision::Accept);
                assert!(failures(&reply).values().all(|failure| failure == "bypassed"), "{reply:?}");
                assert_eq!(reply.verdicts.last().map(|good| good.failure.as_str()), Some(""));
                calls += 1;
            }
        }
    });
    for task in hostile {
        tokio::time::timeout(DEADLINE, task).await.expect("a policy did not fail").unwrap();
    }
    done.store(true, Ordering::Relaxed);
    good.await.unwrap();
    let [most, after] = ["VmHWM", "VmRSS"].map(|which| resident(which).saturating_sub(before));
    assert!((GROWTH_MIN..GROWTH_MAX).contains(&most), "{most} bytes more than {before}");
    assert!(after < KEPT_MAX, "{after} bytes more than {before}");
}
