//! Misbehaving policies beside good calls, many at a time: the good ones are answered as ever, and memory stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proto::Decision;

use crate::harness::{Harness, facts, hostile, misbehaving};

/// Resident memory that all of it may add, in bytes: room for every instance that may run at a time, with its limit.
const GROWTH_MAX: u64 = 8 * (64 << 20);
const GOOD_CALLS: usize = 2_000;

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn good_calls_are_answered_beside_hostile_ones_and_memory_stays_bounded() {
    let bus = bus::Bus::in_process();
    let mut config = crate::harness::config(&format!(
        "[[eligibility]]\nname = 'bad'\nsource = '{}'\non_failure = 'abstain'\n[[eligibility]]\nname = 'good'\nsource = 'builtin:size-limits'",
        hostile()
    ));
    config.limits.calls_at_once = 8;
    config.limits.time = std::time::Duration::from_millis(100);
    let harness = Arc::new(Harness::start_on(bus, config).await.unwrap());
    let before = resident();
    let (done, failures) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut hostile = Vec::new();
    for how in ["loop", "allocate", "recurse", "trap", "megabytes", "log"] {
        let (harness, done, failures) = (harness.clone(), done.clone(), failures.clone());
        hostile.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let reply = harness.judge(misbehaving(how)).await;
                let failed = !matches!(reply.verdicts[0].failure.as_str(), "" | "bypassed");
                failures.fetch_add(usize::from(failed), Ordering::Relaxed);
                assert_eq!(reply.verdicts[1].failure, "", "the policy beside it is unaffected");
            }
        }));
    }
    let mut most = 0;
    for call in 0..GOOD_CALLS {
        let reply = harness.judge(facts()).await;
        assert_eq!(reply.decision(), Decision::Accept);
        let good = &reply.verdicts[1];
        assert_eq!((good.failure.as_str(), good.decision()), ("", Decision::Accept));
        if call % 50 == 0 {
            most = most.max(resident());
        }
    }
    done.store(true, Ordering::Relaxed);
    for task in hostile {
        task.await.unwrap();
    }
    assert!(failures.load(Ordering::Relaxed) >= 3, "nothing misbehaved");
    assert!(most.saturating_sub(before) < GROWTH_MAX, "{before} -> {most} bytes");
}
