//! What becomes of an image when the policies are there and give no verdict, or when nobody is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::{Answer, Answering};
use fetcher::Unanswered;
use proto::refusal::POLICY_REASON;
use proto::{Decision, JudgeReply, JudgeRequest, Refusal, Verdict};
use testkit::{ImageSpec, LayoutWriter, Tarball};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::Harness;

/// Policies that fail in all ways but in what they say: such an answer cannot be had from real ones at will.
async fn policies(
    harness: &Harness,
    answer: impl Fn(usize) -> Option<Result<JudgeReply, Status>> + Send + Sync + 'static,
) -> (Answering, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (counter, answer) = (asked.clone(), Arc::new(answer));
    let handler = move |_: JudgeRequest| {
        let (before, answer) = (counter.fetch_add(1, Ordering::SeqCst), answer.clone());
        async move {
            match answer(before) {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    };
    let bound = Answer { in_flight: 8, instance: None };
    (harness.bus.answer(bound, handler).await.unwrap(), asked)
}

/// The code that a policy gave, or that was given in its stead.
fn reason(status: &Status) -> String {
    assert_eq!(Refusal::of(status), Some(Refusal::Invalid));
    status.get_details_error_info().unwrap().metadata[POLICY_REASON].clone()
}

async fn harness(unanswered: Unanswered, wait: Duration) -> (Harness, String) {
    let harness = Harness::start_with(|config| {
        (config.judging.unanswered, config.judging.wait) = (unanswered, wait);
    })
    .await;
    let mut layout: LayoutWriter = harness.layout();
    layout.image("app", &ImageSpec::new([Tarball::new().file("file", b"content").finish()])).unwrap();
    let reference = layout.reference("app");
    (harness, reference)
}

#[tokio::test]
async fn policies_that_are_there_and_fail_refuse_whatever_holds_without_any() {
    type Failure = fn(usize) -> Option<Result<JudgeReply, Status>>;
    let failures: [(Failure, &str); 3] = [
        (|_| Some(Err(Refusal::Busy.status("all are in use"))), "all are in use"),
        (|_| Some(Err(Status::internal("it broke"))), "it broke"),
        (|_| None, "not answered within"),
    ];
    for unanswered in [Unanswered::Accept, Unanswered::Refuse] {
        for (failure, why) in failures {
            let (harness, image) = harness(unanswered, Duration::from_millis(500)).await;
            let (_answering, asked) = policies(&harness, failure).await;
            let status = harness.import(&image).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");

            assert!(status.message().contains("the policies failed: "), "{status}");
            assert!(status.message().contains(why), "{status}");
            assert_eq!(reason(&status), "policy-failed");
            assert!(asked.load(Ordering::SeqCst) > 0);
            assert!(harness.project().images().await.unwrap().is_empty(), "it was imported");
        }
    }
}

#[tokio::test]
async fn policies_that_are_full_for_a_moment_are_asked_again_and_decide() {
    let refuses = |before| {
        let verdict = Verdict {
            policy: "mine".to_owned(),
            decision: Decision::Refuse.into(),
            reason: "not-this-one".to_owned(),
            message: "not this one".to_owned(),
            ..Verdict::default()
        };
        Some(match before {
            0 | 1 => Err(Refusal::Busy.status("all are in use")),
            _ => Ok(JudgeReply {
                decision: Decision::Refuse.into(),
                verdicts: vec![verdict],
                ..JudgeReply::default()
            }),
        })
    };
    let (harness, image) = harness(Unanswered::Accept, Duration::from_secs(60)).await;
    let (_answering, asked) = policies(&harness, refuses).await;
    let status = harness.import(&image).await.unwrap_err();
    assert_eq!(reason(&status), "not-this-one", "{status}");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn where_nobody_is_there_the_setting_holds() {
    let (open, image) = harness(Unanswered::Accept, Duration::from_secs(60)).await;
    open.import(&image).await.unwrap();
    let (closed, image) = harness(Unanswered::Refuse, Duration::from_millis(300)).await;
    let status = closed.import(&image).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}
