//! An image from its name: what ends an import is told, and only a fetcher that is gone is asked anew.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::{Answer, Bus};
use proto::resolve_reply::Answer as Said;
use proto::{FollowRequest, ImportTicket, ResolveReply, ResolveRequest};
use tonic::{Code, Status};

const SOON: Duration = Duration::from_secs(60);

/// How often the image was asked for, until its import ended with `code`, each time.
async fn asked(code: Code) -> (usize, Status) {
    let (bus, asked) = (Bus::in_process(), Arc::new(AtomicUsize::new(0)));
    let answer = || Answer { in_flight: 8, instance: Some("one".to_owned()) };
    let counting = asked.clone();
    let _resolves = bus
        .answer(answer(), move |_: ResolveRequest| {
            counting.fetch_add(1, Ordering::Relaxed);
            let ticket = ImportTicket { instance: "one".to_owned(), ..ImportTicket::default() };
            std::future::ready(Ok(ResolveReply { answer: Some(Said::Importing(ticket)) }))
        })
        .await
        .unwrap();
    let _follows = bus
        .answer(answer(), move |request: FollowRequest| {
            assert_eq!((request.project.as_str(), request.node.as_str()), ("p", "n"), "whose it is");
            std::future::ready(Err::<ResolveReply, _>(Status::new(code, "it ended")))
        })
        .await
        .unwrap();
    let request =
        ResolveRequest { project: "p".to_owned(), node: "n".to_owned(), ..ResolveRequest::default() };
    let refused = bus.resolve(&request, SOON, |_| Ok(())).await.unwrap_err();
    (asked.load(Ordering::Relaxed), refused)
}

#[tokio::test(start_paused = true)]
async fn an_import_that_ended_is_not_asked_for_again() {
    // A layer that the registry does not have, among others.
    for code in [Code::NotFound, Code::DataLoss, Code::PermissionDenied, Code::InvalidArgument] {
        let (times, refused) = asked(code).await;
        assert_eq!((times, refused.code()), (1, code));
    }
    let (times, refused) = asked(Code::Unavailable).await;
    assert!(times > 1, "a fetcher that is gone is asked anew");
    assert_eq!(refused.code(), Code::Unavailable);
}
