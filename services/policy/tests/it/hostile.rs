//! Policies that misbehave: each ends in a precise error, and in what its failure rule says.

use proto::{Decision, EventKind};

use crate::harness::{Harness, MISBEHAVIOURS, OWN_MISBEHAVIOURS, decisions, facts, hostile, misbehaving};

async fn harness(rule: &str) -> Harness {
    Harness::with(&format!(
        "[[eligibility]]\nname = 'bad'\nsource = '{}'\non_failure = '{rule}'\n[[eligibility]]\nname = 'good'\nsource = 'builtin:schema-version'",
        hostile()
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_is_a_failure_of_its_kind() {
    for (how, kind, message) in MISBEHAVIOURS.into_iter().chain(OWN_MISBEHAVIOURS) {
        let harness = harness("abstain").await;
        let verdict = harness.misbehave("bad", how).await;
        assert_eq!(
            (verdict.failure.as_str(), verdict.decision()),
            (kind, Decision::Abstain),
            "{how}: {verdict:?}"
        );
        assert!(verdict.message.contains(message), "{how}: {}", verdict.message);
        assert_eq!(verdict.reason, "policy-failed");
        let told = harness.bus.events().recent();
        assert_eq!(told.len(), 1, "{how}: {told:?}");
        assert_eq!((told[0].kind(), told[0].reason.as_str()), (EventKind::PolicyFailed, kind), "{how}");
        assert_eq!((&*told[0].details["policy"], &*told[0].image), ("bad", "registry.example/team/app:1"));
        assert!(told[0].message.contains(message), "{how}: {told:?}");
        let after = harness.judge(facts()).await;
        assert_eq!(decisions(&after), [Decision::Accept, Decision::Accept], "after {how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_rule_decides_for_the_image() {
    for (rule, decision) in
        [("refuse", Decision::Refuse), ("accept", Decision::Accept), ("abstain", Decision::Accept)]
    {
        let reply = harness(rule).await.judge(misbehaving("trap")).await;
        assert_eq!(reply.decision(), decision, "{rule}");
        assert_eq!(reply.verdicts[1].decision(), Decision::Accept, "the good policy is asked all the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_log_lines_is_cut_and_no_failure() {
    let verdict = harness("refuse").await.misbehave("bad", "log").await;
    assert_eq!((verdict.failure.as_str(), verdict.decision()), ("", Decision::Accept));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_again_and_again_rests_and_its_rule_still_applies() {
    let harness = harness("refuse").await;
    for _ in 0..3 {
        assert_eq!(harness.misbehave("bad", "trap").await.failure, "trap");
    }
    let rests = harness.misbehave("bad", "").await;
    assert_eq!((rests.failure.as_str(), rests.decision()), ("bypassed", Decision::Refuse));
    assert!(harness.policies().await.policies[0].open_circuit);
    // Until it works again after a pause.
    loop {
        let verdict = harness.misbehave("bad", "").await;
        if verdict.failure.is_empty() {
            assert_eq!(verdict.decision(), Decision::Accept);
            break;
        }
        assert_eq!(verdict.failure, "bypassed");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!harness.policies().await.policies[0].open_circuit);
}

/// What comes before it takes most of the time of the question, until that rests.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_when_the_question_is_over_is_late_and_does_not_rest() {
    let policy = |name: &str| format!("[[eligibility]]\nname = '{name}'\nsource = '{}'\n", hostile());
    let mut config = crate::harness::config(&(policy("greedy") + &policy("bad")));
    [config.limits.time, config.limits.total_time] = [80, 100].map(std::time::Duration::from_millis);
    let harness = Harness::start(config).await.unwrap();
    for _ in 0..3 {
        let verdict = harness.misbehave("bad", "loop").await;
        assert_eq!((verdict.failure.as_str(), verdict.decision()), ("late", Decision::Refuse), "{verdict:?}");
    }
    assert!(!harness.policies().await.policies[1].open_circuit);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_when_its_policy_goes_to_rest_ends_at_once() {
    // On a busy machine the first try may find it at rest before its loop has begun.
    for _ in 0..20 {
        let mut config =
            crate::harness::config(&format!("[[eligibility]]\nname = 'bad'\nsource = '{}'", hostile()));
        let long = crate::harness::DEADLINE * 2;
        (config.limits.time, config.limits.total_time) = (long, long);
        let harness = std::sync::Arc::new(Harness::start(config).await.unwrap());
        let looping = tokio::spawn({
            let harness = harness.clone();
            async move { harness.misbehave("bad", "loop").await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        for _ in 0..3 {
            assert_eq!(harness.misbehave("bad", "trap").await.failure, "trap");
        }
        let verdict = looping.await.unwrap();
        assert_eq!(
            (verdict.failure.as_str(), verdict.decision()),
            ("bypassed", Decision::Refuse),
            "{verdict:?}"
        );
        if verdict.microseconds > 0 {
            return;
        }
    }
    panic!("the loop never began");
}
