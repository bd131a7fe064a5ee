//! Prefetch policies that misbehave: each ends in a precise error, which is counted and told, and in another policy's plan or none. Then a node
//! plans by itself.

use proto::plan_item::{ChunkRun, Item};
use proto::{Decision, EventKind};
use tonic::Code;

use crate::harness::{
    DEADLINE, Harness, MISBEHAVIOURS, config, counted, decisions, facts, hostile_planner, misbehaving,
};

/// A planner that misbehaves, and what follows it in the set.
async fn harness(name: &str, next: &str) -> Harness {
    let set = format!("[[prefetch]]\nname = '{name}'\nsource = '{}'\n{next}", hostile_planner());
    Harness::start(config(&set)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_is_a_failure_of_its_kind_and_there_is_no_plan() {
    lifecycle::telemetry::install().unwrap();
    let own = [
        ("error", "error", "it reports an error: no list for this image"),
        ("million-items", "output", "it hands over more than 1.0 MiB at once"),
        ("many-items", "nonsense", "its plan has 10001 items; at most 10000"),
        ("long-path", "nonsense", "the paths of its plan have 600000 bytes; at most 524288"),
        ("no-bandwidth", "nonsense", "its plan has a bandwidth of 0: the mode `nothing` says that"),
    ];
    for (how, kind, message) in MISBEHAVIOURS.into_iter().chain(own) {
        let name = format!("plans-{how}");
        let harness = harness(&name, "").await;
        let refused = harness.plan_of(misbehaving(how), 1, 3).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::FailedPrecondition, "no prefetch policy has a plan"),
            "{how}"
        );
        let told = harness.bus.events().recent();
        assert_eq!(told.len(), 1, "{how}: {told:?}");
        assert_eq!(
            (told[0].kind(), told[0].reason.as_str()),
            (EventKind::PolicyFailed, kind),
            "{how}: {told:?}"
        );
        assert_eq!((&*told[0].details["policy"], &*told[0].image), (&*name, "registry.example/team/app:1"));
        assert!(told[0].message.contains(message), "{how}: {told:?}");
        for metric in [
            format!("sluice_policy_plans_total{{policy=\"{name}\",outcome=\"{kind}\",mode=\"enforce\"}}"),
            format!("sluice_policy_failures_total{{policy=\"{name}\",kind=\"{kind}\"}}"),
        ] {
            assert_eq!(counted(&metric), 1, "{metric}");
        }
        // Other calls go on: of the same policy, and those that judge the same image.
        let plan = harness.plan(1, 3).await.unwrap();
        assert_eq!((plan.policy.as_str(), plan.items.len()), (name.as_str(), 1), "after {how}");
        let judged = harness.judge(misbehaving(how)).await;
        assert_eq!(decisions(&judged), [Decision::Accept, Decision::Accept], "after {how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failure_the_next_policy_plans_and_what_fails_again_and_again_rests() {
    lifecycle::telemetry::install().unwrap();
    let harness = harness("weary", "[[prefetch]]\nname = 'next'\nsource = 'builtin:learned'").await;
    let run = Item::Chunks(ChunkRun { first: 0, count: 7 });
    for _ in 0..4 {
        let plan = harness.plan_of(misbehaving("trap"), 2, 7).await.unwrap();
        assert_eq!((plan.policy.as_str(), plan.items[0].item.as_ref()), ("next", Some(&run)));
    }
    let failures = |kind: &str| {
        counted(&format!("sluice_policy_plans_total{{policy=\"weary\",outcome=\"{kind}\",mode=\"enforce\"}}"))
    };
    assert_eq!((failures("trap"), failures("bypassed")), (3, 1));
    let resting = harness.policies().await.policies;
    let resting: Vec<_> = resting.iter().filter(|policy| policy.open_circuit).collect();
    assert!(matches!(resting[..], [policy] if policy.name == "weary"), "{resting:?}");
    assert_eq!(harness.judge(facts()).await.decision(), Decision::Accept);
}

/// A node waits for the plan alone: what has no say runs when the answer is under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_monitored_policy_holds_up_no_plan_and_its_failures_are_told_and_counted() {
    lifecycle::telemetry::install().unwrap();
    let set = format!(
        "[[prefetch]]\nname = 'idle'\nsource = '{}'\nmode = 'monitor'\n[[prefetch]]\nname = 'next'\nsource = 'builtin:learned'",
        hostile_planner()
    );
    let mut config = config(&set);
    // So long that the answer is looked at meanwhile.
    config.limits.time = std::time::Duration::from_secs(3);
    let harness = Harness::start(config).await.unwrap();
    let plan = harness.plan_of(misbehaving("loop"), 2, 7).await.unwrap();
    assert_eq!(plan.policy, "next");
    assert_eq!(harness.bus.events().recent(), [], "the plan waited for the policy that has no say");
    let failed = || {
        let told = harness.bus.events().recent();
        told.first().map(|event| (event.reason.clone(), event.details["policy"].clone()))
    };
    let waiting = async {
        while failed().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap();
    assert_eq!(failed(), Some(("time".to_owned(), "idle".to_owned())));
    let metric = |policy: &str, outcome: &str, mode: &str| {
        counted(&format!(
            "sluice_policy_plans_total{{policy=\"{policy}\",outcome=\"{outcome}\",mode=\"{mode}\"}}"
        ))
    };
    assert_eq!(metric("idle", "time", "monitor"), 1);
    assert!(metric("next", "plan", "enforce") >= 1);
}

/// Numbers and paths that no image has are for the node to pass over: the contract says so. What is shown to people is cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_what_no_image_has_is_handed_on_as_it_is() {
    let plan = harness("bad", "").await.plan_of(misbehaving("absurd"), 1, 3).await.unwrap();
    let items: Vec<Item> = plan.items.into_iter().filter_map(|item| item.item).collect();
    for item in [
        Item::Path(String::new()),
        Item::Path("a\0b".to_owned()),
        Item::Chunks(ChunkRun { first: u32::MAX, count: u32::MAX }),
        Item::Chunks(ChunkRun { first: u32::MAX - 1, count: 1 }),
    ] {
        assert!(items.contains(&item), "{item:?} of {items:?}");
    }
    assert_eq!(plan.bandwidth, Some(u64::MAX));
    assert!(plan.reason.len() <= 256 && !plan.reason.chars().any(char::is_control), "{:?}", plan.reason);
}
