//! Decisions are told to whoever asks for them, for as long as was asked.

use std::time::Duration;

use bus::ToldStream;
use futures::{FutureExt as _, StreamExt as _};
use policy::record::{Entry, TOLD_FOR_MAX};
use proto::subjects::DECISIONS;
use proto::{RecordRequest, RecordedDecision};

use crate::harness::{DEADLINE, Harness, facts, hostile_planner};

const SOON: Duration = Duration::from_secs(1);

async fn harness() -> (Harness, ToldStream<RecordedDecision>) {
    let harness = Harness::with("eligibility = [{ name = 'good', source = 'builtin:size-limits' }]").await;
    let told = harness.bus.listen_to(DECISIONS).await.unwrap();
    (harness, told)
}

async fn ask(harness: &Harness, time: Duration) -> String {
    let for_ms = u32::try_from(time.as_millis()).unwrap();
    let mut replies = harness.bus.gather(RecordRequest { for_ms }, SOON).await.unwrap();
    assert_eq!(replies.len(), 1);
    replies.remove(0).instance
}

#[tokio::test]
async fn decisions_are_told_with_their_facts_from_when_somebody_asks() {
    let (harness, mut told) = harness().await;
    harness.judge(facts()).await;
    assert!(told.next().now_or_never().is_none(), "nobody asked");
    let instance = ask(&harness, TOLD_FOR_MAX).await;
    let judged = harness.judge(facts()).await;
    let planned = harness.plan(3, 7).await.ok();
    let one = told.next().await.unwrap();
    assert_eq!((&one.instance, one.number), (&instance, 0));
    match Entry::of(one).unwrap() {
        Entry::Judged { facts: asked, said } => {
            assert_eq!(asked, facts());
            assert_eq!(said, policy::record::Judgement::from(&judged));
        }
        other => panic!("{other:?}"),
    }
    let two = told.next().await.unwrap();
    assert_eq!((&two.instance, two.number), (&instance, 1));
    let said = planned.as_ref().map(policy::record::Plan::from);
    assert_eq!(
        Entry::of(two),
        Some(Entry::Planned { facts: facts(), starts: 3, chunks: 7, said, monitored: vec![] })
    );
    assert_eq!(Entry::of(RecordedDecision::default()), None, "not a decision");
}

#[tokio::test]
async fn what_a_monitored_policy_plans_is_told_beside_the_plan() {
    let set = format!(
        "[[prefetch]]\nname = 'shadow'\nsource = '{}'\nmode = 'monitor'\n[[prefetch]]\nname = 'mine'\nsource = 'builtin:learned'",
        hostile_planner()
    );
    let harness = Harness::with(&set).await;
    let mut told = harness.bus.listen_to(DECISIONS).await.unwrap();
    ask(&harness, TOLD_FOR_MAX).await;
    let plan = harness.plan(3, 7).await.unwrap();
    let entry = Entry::of(tokio::time::timeout(DEADLINE, told.next()).await.unwrap().unwrap()).unwrap();
    // As the file has it, too.
    let entry: Entry = serde_json::from_str(&serde_json::to_string(&entry).unwrap()).unwrap();
    let Entry::Planned { said, monitored, .. } = entry else { panic!("{entry:?}") };
    assert_eq!((plan.policy.as_str(), said), ("mine", Some(policy::record::Plan::from(&plan))));
    let [shadow] = &monitored[..] else { panic!("{monitored:?}") };
    assert_eq!((shadow.policy.as_str(), shadow.mode.as_str()), ("shadow", "listed-only"));
}

#[tokio::test]
async fn nothing_is_told_when_the_time_is_over_and_nobody_shortens_anothers() {
    let (harness, mut told) = harness().await;
    let short = Duration::from_millis(200);
    ask(&harness, short).await;
    tokio::time::sleep(short).await;
    harness.judge(facts()).await;
    assert!(told.next().now_or_never().is_none(), "its time is over");
    ask(&harness, TOLD_FOR_MAX).await;
    ask(&harness, Duration::ZERO).await;
    harness.judge(facts()).await;
    tokio::time::timeout(DEADLINE, told.next()).await.unwrap().unwrap();
}
