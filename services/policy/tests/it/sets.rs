//! Several policies together, and one set after the other.

use std::time::Duration;

use proto::{Decision, EventKind, PoliciesReply};

use crate::harness::{Harness, counted, decisions, facts, hostile, misbehaving};

/// A set in which the first policy refuses, the second accepts.
fn two(combine: &str, mode: &str) -> String {
    let hostile = hostile();
    format!(
        "combine = '{combine}'\n[[eligibility]]\nname = 'no'\nsource = '{hostile}'\nmode = '{mode}'\nsettings = {{ answer = 'because' }}\n\
         [[eligibility]]\nname = 'yes'\nsource = '{hostile}'"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_asked_where_all_must_agree_and_the_first_that_decides_ends_it() {
    let reply = Harness::with(&two("all", "enforce")).await.judge(facts()).await;
    assert_eq!(decisions(&reply), [Decision::Refuse, Decision::Accept]);
    assert_eq!(reply.decision(), Decision::Refuse);
    let first = &reply.verdicts[0];
    assert_eq!((first.reason.as_str(), first.message.as_str()), ("because", "as its settings say"));
    assert!(first.digest.starts_with("sha256:") && first.version == "1.0.0");

    let reply = Harness::with(&two("first", "enforce")).await.judge(facts()).await;
    assert_eq!(decisions(&reply), [Decision::Refuse]);
    assert_eq!(reply.decision(), Decision::Refuse);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitored_policy_is_shown_and_has_no_say() {
    for combine in ["all", "first"] {
        let reply = Harness::with(&two(combine, "monitor")).await.judge(facts()).await;
        assert_eq!(decisions(&reply), [Decision::Refuse, Decision::Accept]);
        assert!(reply.verdicts[0].monitored && !reply.verdicts[1].monitored);
        assert_eq!(reply.decision(), Decision::Accept, "{combine}");
    }
}

/// The monitored ones come first in the set, and use up the time of the whole question.
#[tokio::test(flavor = "multi_thread")]
async fn a_monitored_policy_takes_no_time_from_those_that_have_a_say() {
    let policy = |name: &str, mode: &str| {
        format!("[[eligibility]]\nname = '{name}'\nsource = '{}'\nmode = '{mode}'\n", hostile())
    };
    let set = [("one", "monitor"), ("two", "monitor")].map(|(name, mode)| policy(name, mode)).concat()
        + "[[eligibility]]\nname = 'good'\nsource = 'builtin:schema-version'";
    let mut config = crate::harness::config(&set);
    [config.limits.time, config.limits.total_time] = [1, 1].map(Duration::from_secs);
    let reply = Harness::start(config).await.unwrap().judge(misbehaving("loop")).await;
    let said: Vec<_> =
        reply.verdicts.iter().map(|verdict| (verdict.policy.as_str(), verdict.failure.is_empty())).collect();
    assert_eq!(said, [("one", false), ("two", false), ("good", true)], "{reply:?}");
    assert_eq!(reply.decision(), Decision::Accept);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_set_judges_and_plans() {
    let harness = Harness::start(policy::Config::default()).await.unwrap();
    let reply = harness.judge(facts()).await;
    assert_eq!((reply.decision(), reply.generation), (Decision::Accept, 1));
    let loaded = harness.policies().await.policies;
    let names: Vec<&str> = loaded.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["schema-version", "encrypted-layers", "learned"]);
    assert_eq!(harness.plan(2, 7).await.unwrap().policy, "learned");
}

pub(crate) async fn until(harness: &Harness, wanted: impl Fn(&PoliciesReply) -> bool) -> PoliciesReply {
    for _ in 0..300 {
        let reply = harness.policies().await;
        if wanted(&reply) {
            return reply;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the set was not loaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_set_replaces_the_old_one_only_when_all_of_it_works() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.toml");
    std::fs::write(&file, two("all", "enforce")).unwrap();
    let config = policy::Config { file: Some(file.clone()), ..policy::Config::default() };
    let harness = Harness::start(config).await.unwrap();
    assert_eq!(harness.judge(facts()).await.decision(), Decision::Refuse);

    for (wrong, expected) in [
        ("[[eligibility]]", "missing field"),
        ("[[eligibility]]\nname = 'x'\nsource = 'builtin:nothing'", "there is no policy builtin:nothing"),
        (
            "[[eligibility]]\nname = 'x'\nsource = 'builtin:size-limits'\nsettings = { a = 1 }",
            "no such setting",
        ),
    ] {
        std::fs::write(&file, wrong).unwrap();
        let reply = until(&harness, |reply| reply.last_error.contains(expected)).await;
        assert_eq!(reply.generation, 1);
        assert_eq!(harness.judge(facts()).await.decision(), Decision::Refuse, "the old set answers");
    }

    let told = harness.bus.events().recent();
    assert!(told.iter().all(|event| event.kind() == EventKind::PolicySet && event.is_warning()), "{told:?}");
    assert!(told[0].message.contains("missing field"), "{told:?}");

    std::fs::write(&file, two("all", "monitor")).unwrap();
    let reply = until(&harness, |reply| reply.generation == 2).await;
    assert_eq!(reply.last_error, "");
    let told = harness.bus.events().recent();
    assert!(told.iter().any(|event| event.reason == "loaded" && !event.is_warning()), "{told:?}");
    assert_eq!(harness.judge(facts()).await.decision(), Decision::Accept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_goes_away_and_comes_back_is_no_error_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.toml");
    std::fs::write(&file, two("all", "enforce")).unwrap();
    let config = policy::Config { file: Some(file.clone()), ..policy::Config::default() };
    let harness = Harness::start(config).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    until(&harness, |reply| reply.last_error.contains("reading the policy set")).await;
    std::fs::write(&file, two("all", "enforce")).unwrap();
    until(&harness, |reply| reply.last_error.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_rests_still_rests_when_another_one_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.toml");
    std::fs::write(&file, two("all", "enforce")).unwrap();
    let config = policy::Config { file: Some(file.clone()), ..policy::Config::default() };
    let harness = Harness::start(config).await.unwrap();
    for _ in 0..3 {
        harness.judge(misbehaving("trap")).await;
    }
    let resting =
        |reply: &PoliciesReply| reply.policies.iter().map(|policy| policy.open_circuit).collect::<Vec<_>>();
    assert_eq!(resting(&harness.policies().await)[..2], [true, true]);
    // The second policy has another mode now.
    std::fs::write(&file, two("all", "enforce") + "\nmode = 'monitor'").unwrap();
    let reply = until(&harness, |reply| reply.generation == 2).await;
    assert_eq!(resting(&reply)[..2], [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn gauges_forget_what_left_the_set() {
    lifecycle::telemetry::install().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.toml");
    std::fs::write(&file, format!("[[eligibility]]\nname = 'leaving'\nsource = '{}'", hostile())).unwrap();
    let config = policy::Config { file: Some(file.clone()), ..policy::Config::default() };
    let harness = Harness::start(config).await.unwrap();
    for _ in 0..3 {
        harness.judge(misbehaving("trap")).await;
    }
    let gauge = |name: &str| counted(&format!("sluice_policy_{name}{{policy=\"leaving\"}}"));
    let gauges = || (gauge("circuit_open"), gauge("memory_high_water_bytes") > 0);
    assert_eq!(gauges(), (1, true));
    std::fs::write(&file, "eligibility = []").unwrap();
    until(&harness, |reply| reply.generation == 2).await;
    assert_eq!(gauges(), (0, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_on_the_set_that_it_began_with_and_none_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.toml");
    std::fs::write(&file, two("all", "enforce")).unwrap();
    let config = policy::Config { file: Some(file.clone()), ..policy::Config::default() };
    let harness = Harness::start(config).await.unwrap();
    let asked = async {
        let mut generations = Vec::new();
        while generations.last() != Some(&2) {
            // Panics when a call fails.
            let reply = harness.judge(misbehaving("log")).await;
            let expected = if reply.generation == 1 { Decision::Refuse } else { Decision::Accept };
            assert_eq!(reply.decision(), expected, "the verdict is of the generation that it names");
            generations.push(reply.generation);
        }
    };
    let replace = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::fs::write(&file, two("all", "monitor")).unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(asked, replace) }).await.unwrap();
}
