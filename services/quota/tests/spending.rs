//! Who spends, and the quota service, on one bus: what is refused, what is only watched, what is set while they run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use allowance::{Allowances, Class, Spender, Unanswered};
use bus::Bus;
use proto::quota::Refused;
use proto::quota_set_request::To;
use proto::{
    QuotaClaimRequest, QuotaMetric, QuotaMode, QuotaSetRequest, QuotaShowRequest, QuotaWant, QuotaWindow,
};
use quota::{Amount, Config, MetricLimits, ProjectLimits, Quota};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

/// Long enough for a busy machine; no test waits for it when all is well.
const SOON: Duration = Duration::from_secs(60);

fn per_day(requests: u64, shadow: bool) -> Config {
    let content_requests =
        MetricLimits { day: Some(Amount::Limit(requests)), shadow: Some(shadow), ..MetricLimits::default() };
    let limits = ProjectLimits { content_requests, ..ProjectLimits::default() };
    Config { limits, ..Config::default() }
}

async fn start(config: Config, bus: &Bus) -> Quota {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let quota = Quota::start(config, bus.clone(), &tasks, shutdown).await.unwrap();
    let known = async {
        while quota.probe()().await.is_err() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(SOON, known).await.expect("the live limits are not read");
    quota
}

fn spender(bus: &Bus, unanswered: Unanswered) -> Spender {
    let config = allowance::Config { region: "eu".to_owned(), unanswered };
    Allowances::new(bus.clone(), config).of("team", QuotaMetric::ContentRequests)
}

/// Spends one after the other until it is refused: how many, and the refusal.
async fn until_refused(spender: &Spender, at_most: u64) -> (u64, Option<Status>) {
    for spent in 0..at_most {
        if let Err(status) = spender.take(1, Class::Demand).await {
            return (spent, Some(status));
        }
    }
    (at_most, None)
}

#[tokio::test]
async fn a_limit_is_reached_exactly_and_the_refusal_says_which_one() {
    let bus = Bus::in_process();
    let _quota = start(per_day(1_000, false), &bus).await;
    let spenders: Vec<Spender> = (0..3).map(|_| spender(&bus, Unanswered::Safe)).collect();
    let spending = spenders.iter().map(|spender| until_refused(spender, 2_000));
    let ends = futures::future::join_all(spending).await;
    assert_eq!(ends.iter().map(|(spent, _)| spent).sum::<u64>(), 1_000);
    for (_, refusal) in ends {
        let refused = Refused::of(&refusal.unwrap()).unwrap();
        assert_eq!(refused.limit, "content_requests_per_project_day");
        assert!(refused.retry > Duration::ZERO && refused.message.contains("project team"), "{refused:?}");
    }
    let other = Allowances::new(bus.clone(), allowance::Config::default());
    assert!(other.of("another", QuotaMetric::ContentRequests).take(500, Class::Demand).await.is_ok());
    assert!(other.of("team", QuotaMetric::ContentBytes).take(1 << 40, Class::Background).await.is_ok());
}

#[tokio::test]
async fn a_limit_that_is_only_watched_refuses_nothing() {
    let bus = Bus::in_process();
    let _quota = start(per_day(100, true), &bus).await;
    assert_eq!(until_refused(&spender(&bus, Unanswered::Closed), 1_000).await.0, 1_000);
}

#[tokio::test]
async fn a_mesh_needs_no_quota_service_unless_it_is_said_so() {
    let bus = Bus::in_process();
    for unanswered in [Unanswered::Safe, Unanswered::Open] {
        assert_eq!(until_refused(&spender(&bus, unanswered), 1_000).await.0, 1_000);
    }
    let refused = spender(&bus, Unanswered::Closed).take(1, Class::Demand).await.unwrap_err();
    assert!(refused.message().contains("does not answer"), "{refused}");
}

#[tokio::test]
async fn who_had_heard_of_a_limit_spends_a_share_of_it_when_nobody_answers_any_more() {
    let bus = Bus::in_process();
    let quota = start(per_day(800, false), &bus).await;
    let spenders: Vec<Spender> =
        [Unanswered::Safe, Unanswered::Closed, Unanswered::Open].map(|it| spender(&bus, it)).into();
    for spender in &spenders {
        spender.take(1, Class::Demand).await.unwrap();
    }
    drop(quota);
    // The blocks that they have, each an eighth of a quarter at most; and the share of one of eight.
    let (block, share) = (25, 100);
    let (safe, refusal) = until_refused(&spenders[0], 10_000).await;
    assert!((share..=share + block).contains(&safe), "{safe}");
    assert!(refusal.unwrap().message().contains("does not answer"));
    let (closed, _) = until_refused(&spenders[1], 10_000).await;
    assert!(closed <= block, "{closed}");
    assert_eq!(until_refused(&spenders[2], 10_000).await.0, 10_000);
}

fn set(to: To) -> QuotaSetRequest {
    QuotaSetRequest {
        project: "team".to_owned(),
        metric: QuotaMetric::ContentRequests.into(),
        window: QuotaWindow::Day.into(),
        to: Some(to),
        mode: QuotaMode::Enforce.into(),
    }
}

#[tokio::test]
async fn what_is_set_live_holds_for_all_who_answer_and_is_shown() {
    let bus = Bus::in_process();
    let (_one, _two) = (start(per_day(10, false), &bus).await, start(per_day(10, false), &bus).await);
    let shown = async || {
        let request = QuotaShowRequest { project: "team".to_owned(), region: "eu".to_owned() };
        let reply = bus.call(request, SOON).await.unwrap();
        assert_eq!(reply.limits.len(), 6);
        let is_it = |metric, window| metric == QuotaMetric::ContentRequests && window == QuotaWindow::Day;
        reply.limits.into_iter().find(|limit| is_it(limit.metric(), limit.window())).unwrap()
    };
    assert_eq!((shown().await.limit, shown().await.source.as_str()), (Some(10), "default"));
    bus.call(set(To::Limit(50)), SOON).await.unwrap();
    // Both answer in turns.
    let everywhere = async {
        while shown().await.limit != Some(50) || shown().await.limit != Some(50) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, everywhere).await.expect("one of them does not hear of it");
    assert_eq!(until_refused(&spender(&bus, Unanswered::Safe), 1_000).await.0, 50);
    assert_eq!((shown().await.used, shown().await.source.as_str()), (50, "project-live"));
    bus.call(set(To::Forget(true)), SOON).await.unwrap();
    let everywhere = async {
        while shown().await.limit != Some(10) || shown().await.limit != Some(10) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, everywhere).await.expect("one of them does not hear of it");
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_a_reason() {
    let bus = Bus::in_process();
    let _quota = start(Config::default(), &bus).await;
    let claim = QuotaClaimRequest {
        project: "team".to_owned(),
        metric: QuotaMetric::Imports.into(),
        spender: "me".to_owned(),
        wants: vec![QuotaWant { window: QuotaWindow::Day.into(), amount: u64::MAX, need: u64::MAX }],
        ..QuotaClaimRequest::default()
    };
    // However much is asked for.
    let reply = bus.call(claim.clone(), SOON).await.unwrap();
    assert_eq!(reply.blocks[0].granted, allowance::grant::AMOUNT_MAX);
    let with = |change: &dyn Fn(&mut QuotaClaimRequest)| {
        let mut claim = claim.clone();
        change(&mut claim);
        claim
    };
    for wrong in [
        with(&|claim| claim.project = "a b".to_owned()),
        with(&|claim| claim.project = "x".repeat(1000)),
        with(&|claim| claim.region = "*".to_owned()),
        with(&|claim| claim.metric = 99),
        with(&|claim| claim.wants[0].window = 99),
        with(&|claim| claim.spender = "x".repeat(1000)),
        with(&|claim| claim.wants = vec![claim.wants[0]; 9]),
    ] {
        assert_eq!(
            bus.call(wrong.clone(), SOON).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{wrong:?}"
        );
    }
    for wrong in [
        QuotaSetRequest { to: None, ..set(To::Limit(1)) },
        set(To::Forget(false)),
        QuotaSetRequest { metric: 0, ..set(To::Limit(1)) },
        QuotaSetRequest { window: 7, ..set(To::Limit(1)) },
        QuotaSetRequest { mode: 7, ..set(To::Limit(1)) },
        QuotaSetRequest { project: "*/x".to_owned(), ..set(To::Limit(1)) },
    ] {
        assert_eq!(
            bus.call(wrong.clone(), SOON).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{wrong:?}"
        );
    }
    let show = QuotaShowRequest { project: "../x".to_owned(), ..QuotaShowRequest::default() };
    assert_eq!(bus.call(show, SOON).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Not a bound on time: what it costs is printed for who wants to know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spending_what_is_there_asks_nobody() {
    let bus = Bus::in_process();
    let quota = start(per_day(100_000_000, false), &bus).await;
    let spender = spender(&bus, Unanswered::Closed);
    spender.take(1, Class::Demand).await.unwrap();
    drop(quota);
    // A block is there, and nobody who would give another one.
    let begun = std::time::Instant::now();
    let spent = (0..40).take_while(|_| spender.try_take(1, Class::Demand)).count();
    println!("{:?} for each of {spent}", begun.elapsed() / 40);
    assert_eq!(spent, 40);
}

/// Those who find no tickets wait in line, and others who come meanwhile may take what was brought for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_refused_only_when_everything_is_spent() {
    let bus = Bus::in_process();
    let _quota = start(per_day(1_000, false), &bus).await;
    let spender = spender(&bus, Unanswered::Closed);
    let spending = (0..50).map(|_| {
        let spender = spender.clone();
        tokio::spawn(async move { until_refused(&spender, 2_000).await })
    });
    let ends = futures::future::join_all(spending).await;
    let spent = ends.iter().map(|end| end.as_ref().unwrap().0).sum::<u64>();
    assert_eq!(spent, 1_000);
    for end in ends {
        let (_, refusal) = end.unwrap();
        assert!(refusal.unwrap().message().contains("used up"));
    }
}
