//! What every bus promises, checked against each transport: in one process, and over a real NATS
//! server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::{Answer, Answering, Bus, EventStream, MESSAGE_MAX, NatsConfig, ToldStream};
use futures::StreamExt;
use proto::refusal::retry_after;
use proto::{
    Event, EventKind, InspectReply, InspectRequest, LocateReply, LocateRequest, Refusal, ReportReply,
    ReportRequest,
};
use tokio::sync::{Notify, Semaphore};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Long enough for a busy machine; no test waits for it when all is well.
const SOON: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(30);

/// Runs `check` on a bus of either kind.
macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod in_process {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Bus::in_process()).await;
            })*
        }
        mod nats {
            $(#[tokio::test]
            async fn $name() {
                let server = testkit::Nats::start().unwrap();
                super::$name(super::connect(&server).await).await;
            })*
        }
    };
}

conformance! {
    a_request_gets_its_reply,
    an_error_arrives_with_code_message_and_details,
    nobody_answers_is_unavailable,
    a_call_waits_for_a_service_that_starts,
    a_full_service_says_so,
    a_handler_that_panics_still_replies,
    the_deadline_reaches_the_handler,
    the_caller_does_not_wait_longer_than_its_deadline,
    an_instance_is_asked_by_name,
    several_share_the_requests,
    everyone_can_be_asked,
    a_stopped_service_takes_no_more_and_finishes_what_it_has,
    messages_are_bounded,
    an_unreadable_request_is_refused,
    a_lease_has_one_holder,
    a_dropped_lease_is_free_again,
    leases_of_different_names_are_independent,
    events_reach_everyone_who_listens,
    an_event_needs_no_listener_and_is_kept,
    what_is_told_reaches_everyone_who_listens_to_its_subject,
    each_addition_is_answered_with_a_sum_of_its_own,
    sums_of_other_keys_and_names_are_others,
    a_sum_is_forgotten_after_its_time,
    a_table_holds_what_was_written_last,
    who_writes_over_what_he_does_not_know_is_refused,
    a_watcher_is_told_what_is_there_and_then_what_changes,
    what_is_published_is_stored_once_and_comes_in_order,
    a_consumer_goes_on_where_it_was,
    what_is_given_back_comes_again_after_its_pause,
    what_is_worked_on_comes_to_nobody_else,
    what_is_given_up_does_not_come_again,
    only_so_many_are_in_flight,
    each_consumer_has_a_place_of_its_own_and_what_it_wants,
    the_oldest_go_first,
    a_stream_refuses_what_it_does_not_keep,
    events_go_into_the_stream_that_keeps_them,
}

#[path = "conformance/kept.rs"]
mod kept;
#[path = "conformance/streams.rs"]
mod streams;
use kept::*;
use streams::*;

async fn connect(server: &testkit::Nats) -> Bus {
    Bus::connect(&NatsConfig { url: server.url(), ..NatsConfig::default() }).await.unwrap()
}

fn free() -> Answer {
    Answer { in_flight: 16, instance: None }
}

async fn locate<F>(bus: &Bus, answer: Answer, handler: impl Fn() -> F + Send + Sync + 'static) -> Answering
where
    F: Future<Output = Result<LocateReply, Status>> + Send + 'static,
{
    bus.answer(answer, move |_: LocateRequest| handler()).await.unwrap()
}

fn endpoints(name: &str) -> LocateReply {
    LocateReply { endpoints: vec![name.to_owned()] }
}

async fn a_request_gets_its_reply(bus: Bus) {
    let _answering = bus
        .answer(free(), |request: InspectRequest| async move {
            Ok(InspectReply { reference: request.reference, ..InspectReply::default() })
        })
        .await
        .unwrap();
    let request = InspectRequest { reference: "example/image:1".to_owned(), ..InspectRequest::default() };
    assert_eq!(bus.call(request, SOON).await.unwrap().reference, "example/image:1");
}

async fn an_error_arrives_with_code_message_and_details(bus: Bus) {
    let refuse = || async {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
        Err(Status::with_error_details(Code::PermissionDenied, "the registry refused", details))
    };
    let _answering = locate(&bus, free(), refuse).await;
    let status = bus.call(LocateRequest {}, SOON).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "the registry refused"));
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(retry, Some(Duration::from_secs(7)));
}

async fn nobody_answers_is_unavailable(bus: Bus) {
    let once = bus.call_once(LocateRequest {}, SOON).await.unwrap_err();
    assert_eq!(once.code(), Code::Unavailable);
    let instance = bus.call_instance("gone", LocateRequest {}, SOON).await.unwrap_err();
    assert_eq!(instance.code(), Code::Unavailable);
    let bounded = bus.call(LocateRequest {}, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(bounded.code(), Code::Unavailable);
}

async fn a_call_waits_for_a_service_that_starts(bus: Bus) {
    let caller = tokio::spawn({
        let bus = bus.clone();
        async move { bus.call(LocateRequest {}, SOON).await }
    });
    // Likely after the first attempt; the outcome is the same when not.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _answering = locate(&bus, free(), || async { Ok(endpoints("late")) }).await;
    assert_eq!(caller.await.unwrap().unwrap(), endpoints("late"));
}

async fn a_full_service_says_so(bus: Bus) {
    let (started, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let answer = Answer { in_flight: 1, instance: None };
    let _answering = locate(&bus, answer, {
        let (started, finish) = (started.clone(), finish.clone());
        move || {
            let (started, finish) = (started.clone(), finish.clone());
            async move {
                started.notify_one();
                finish.notified().await;
                Ok(endpoints("first"))
            }
        }
    })
    .await;
    let first = tokio::spawn({
        let bus = bus.clone();
        async move { bus.call(LocateRequest {}, SOON).await }
    });
    started.notified().await;
    let once = bus.call_once(LocateRequest {}, SOON).await.unwrap_err();
    assert_eq!(Refusal::of(&once), Some(Refusal::Busy), "{once}");
    assert!(retry_after(&once).is_some(), "{once:?}");
    let patient = bus.call(LocateRequest {}, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(Refusal::of(&patient), Some(Refusal::Busy), "{patient}");
    // Who has the patience gets an answer, from the same instance or from another.
    let second = tokio::spawn({
        let bus = bus.clone();
        async move { bus.call(LocateRequest {}, SOON).await }
    });
    finish.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), endpoints("first"));
    finish.notify_one();
    assert_eq!(second.await.unwrap().unwrap(), endpoints("first"));
}

async fn a_handler_that_panics_still_replies(bus: Bus) {
    let _answering = locate(&bus, free(), || async { panic!("a bug") }).await;
    assert_eq!(bus.call(LocateRequest {}, SOON).await.unwrap_err().code(), Code::Internal);
    let again = bus.call(LocateRequest {}, SOON).await.unwrap_err();
    assert_eq!(again.code(), Code::Internal, "the service lives on");
}

async fn the_deadline_reaches_the_handler(bus: Bus) {
    /// Tells when the handler's future was dropped unfinished.
    struct Dropped(Arc<Notify>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let ended = Arc::new(Notify::new());
    let _answering = locate(&bus, free(), {
        let ended = ended.clone();
        move || {
            let dropped = Dropped(ended.clone());
            async move {
                std::future::pending::<()>().await;
                drop(dropped);
                Ok(LocateReply::default())
            }
        }
    })
    .await;
    let status = bus.call(LocateRequest {}, Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    tokio::time::timeout(SOON, ended.notified()).await.expect("the handler outlived the deadline");
}

async fn the_caller_does_not_wait_longer_than_its_deadline(bus: Bus) {
    let _answering = locate(&bus, free(), std::future::pending).await;
    let call = bus.call(LocateRequest {}, Duration::from_millis(100));
    let status = tokio::time::timeout(SOON, call).await.expect("the call hangs").unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

async fn an_instance_is_asked_by_name(bus: Bus) {
    let named = |name: &str| Answer { in_flight: 1, instance: Some(name.to_owned()) };
    let _one = locate(&bus, named("one"), || async { Ok(endpoints("one")) }).await;
    let _two = locate(&bus, named("two"), || async { Ok(endpoints("two")) }).await;
    for name in ["one", "two", "one", "one", "two", "two"] {
        assert_eq!(bus.call_instance(name, LocateRequest {}, SOON).await.unwrap(), endpoints(name));
    }
    let wrong = bus.call_instance("one.two", LocateRequest {}, SOON).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let refused = bus.answer(named("a b"), |_: LocateRequest| async { Ok(LocateReply::default()) }).await;
    assert!(refused.is_err());
}

async fn several_share_the_requests(bus: Bus) {
    let counts = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let mut answering = Vec::new();
    for count in counts.clone() {
        let handler = move || {
            count.fetch_add(1, Ordering::Relaxed);
            async { Ok(LocateReply::default()) }
        };
        answering.push(locate(&bus, free(), handler).await);
    }
    // NATS chooses at random: 2^-63 that one of the two is never chosen.
    for _ in 0..64 {
        bus.call(LocateRequest {}, SOON).await.unwrap();
    }
    let counts = counts.map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts.iter().sum::<usize>(), 64, "each request is handled once");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

async fn everyone_can_be_asked(bus: Bus) {
    assert!(bus.gather(LocateRequest {}, SOON).await.unwrap().is_empty());
    let _one = locate(&bus, free(), || async { Ok(endpoints("one")) }).await;
    let _two = locate(&bus, free(), || async { Ok(endpoints("two")) }).await;
    let _broken = locate(&bus, free(), || async { Err(Status::internal("broken")) }).await;
    let gone = locate(&bus, free(), || async { Ok(endpoints("gone")) }).await;
    gone.stop().await;
    let mut names = Vec::new();
    // Only a lost reply takes a second round: a machine may be slow.
    for _ in 0..60 {
        let replies = bus.gather(LocateRequest {}, Duration::from_millis(500)).await.unwrap();
        names = replies.into_iter().flat_map(|reply| reply.endpoints).collect();
        names.sort();
        if names.len() == 2 {
            break;
        }
    }
    assert_eq!(names, ["one", "two"]);
}

async fn a_stopped_service_takes_no_more_and_finishes_what_it_has(bus: Bus) {
    let (started, finish) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let answering = locate(&bus, free(), {
        let (started, finish) = (started.clone(), finish.clone());
        move || {
            let (started, finish) = (started.clone(), finish.clone());
            async move {
                started.notify_one();
                finish.acquire().await.unwrap().forget();
                Ok(endpoints("finished"))
            }
        }
    })
    .await;
    let pending = tokio::spawn({
        let bus = bus.clone();
        async move { bus.call(LocateRequest {}, SOON).await }
    });
    started.notified().await;
    let stopping = tokio::spawn(answering.stop());
    // The stop is on its way; from some moment on nobody listens.
    loop {
        match bus.call_once(LocateRequest {}, Duration::from_millis(100)).await {
            Err(status) if status.code() == Code::Unavailable => break,
            Err(status) => assert_eq!(status.code(), Code::DeadlineExceeded),
            Ok(reply) => assert_eq!(reply, endpoints("finished")),
        }
    }
    assert!(!stopping.is_finished());
    finish.add_permits(64);
    assert_eq!(pending.await.unwrap().unwrap(), endpoints("finished"));
    tokio::time::timeout(SOON, stopping).await.expect("stopping hangs").unwrap();
}

async fn messages_are_bounded(bus: Bus) {
    let _reports = bus.answer(free(), |_: ReportRequest| async { Ok(ReportReply::default()) }).await.unwrap();
    let report = |len| ReportRequest { profile: vec![7; len], ..ReportRequest::default() };
    bus.call(report(MESSAGE_MAX - 16), SOON).await.unwrap();
    let refused = bus.call(report(MESSAGE_MAX + 1), SOON).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let _locate = locate(&bus, free(), || async { Ok(endpoints(&"x".repeat(MESSAGE_MAX + 1))) }).await;
    let refused = bus.call(LocateRequest {}, SOON).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
}

async fn an_unreadable_request_is_refused(bus: Bus) {
    /// Bytes that are no message of the subject they are sent to.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Garbage {
        #[prost(fixed64, tag = "1")]
        field: u64,
    }
    impl proto::Call for Garbage {
        const SUBJECT: &'static str = <InspectRequest as proto::Call>::SUBJECT;
        type Reply = InspectReply;
    }
    let _answering =
        bus.answer(free(), |_: InspectRequest| async { Ok(InspectReply::default()) }).await.unwrap();
    let status = bus.call(Garbage { field: 1 }, SOON).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

mod nats_only {
    use super::*;

    #[tokio::test]
    async fn sums_go_on_after_the_server_came_back() {
        let mut server = testkit::Nats::start().unwrap();
        let counters = connect(&server).await.counters("test", KEPT);
        assert_eq!(counters.add("key", 7).await.unwrap(), 7);
        server.kill().unwrap();
        let refused = counters.add("key", 100).await.unwrap_err();
        assert!(matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded), "{refused}");
        server.restart().unwrap();
        let added = async {
            loop {
                if let Ok(sum) = counters.add("key", 1).await {
                    return sum;
                }
            }
        };
        let sum = tokio::time::timeout(SOON, added).await.expect("nothing is counted any more");
        // What was added without an answer may count, and what was counted never is forgotten.
        assert!(sum >= 8, "{sum}");
        assert_eq!(counters.add("key", 1).await.unwrap(), sum + 1);
    }

    #[tokio::test]
    async fn a_watch_goes_on_after_the_server_was_away() {
        let mut server = testkit::Nats::start().unwrap();
        let (here, there) = (connect(&server).await.table("test"), connect(&server).await.table("test"));
        for key in ["a", "b"] {
            there.put(key, "1".into()).await.unwrap();
        }
        let mut changes = here.watch();
        for expected in ["a=1", "b=1", "settled"] {
            assert_eq!(told(&mut changes).await, expected);
        }
        server.kill().unwrap();
        server.restart().unwrap();
        // By somebody else, maybe before the watcher is connected again.
        let changed = async { while there.put("a", "2".into()).await.is_err() {} };
        tokio::time::timeout(SOON, changed).await.expect("the table cannot be written any more");
        assert_eq!(told(&mut changes).await, "a=2", "and nothing twice");
        there.delete("b").await.unwrap();
        assert_eq!(told(&mut changes).await, "b gone");
    }

    /// A holder whose process died: its lease is free after its time to live, also the second time,
    /// when the name was held and freed before.
    #[tokio::test]
    async fn a_dead_holders_lease_expires() {
        let server = testkit::Nats::start().unwrap();
        let survivor = connect(&server).await;
        for round in 0..2 {
            let url = server.url();
            // The holder's runtime goes, and with it everything that would renew or release.
            let holder = std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                let lease = runtime.block_on(async {
                    let bus = Bus::connect(&NatsConfig { url, ..NatsConfig::default() }).await.unwrap();
                    bus.lease("name", Duration::from_secs(1)).await.unwrap()
                });
                runtime.shutdown_background();
                assert!(lease.is_some(), "round {round}: the name is free");
            });
            holder.join().unwrap();
            let taken = async {
                loop {
                    if let Some(lease) = survivor.lease("name", LEASE).await.unwrap() {
                        return lease.release().await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(SOON, taken).await.expect("the lease never expired");
        }
    }

    #[tokio::test]
    async fn a_held_lease_outlives_its_time_to_live() {
        let server = testkit::Nats::start().unwrap();
        let bus = connect(&server).await;
        let lease = bus.lease("name", Duration::from_secs(1)).await.unwrap().expect("the name is free");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!lease.lost().is_cancelled());
        assert!(bus.lease("name", LEASE).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_holder_learns_that_it_lost_the_server() {
        let mut server = testkit::Nats::start().unwrap();
        let bus = connect(&server).await;
        let lease = bus.lease("name", Duration::from_secs(1)).await.unwrap().expect("the name is free");
        server.kill().unwrap();
        tokio::time::timeout(SOON, lease.lost().cancelled()).await.expect("the loss went unnoticed");
    }

    #[tokio::test]
    async fn who_cannot_wait_is_told_that_no_server_answers() {
        let mut server = testkit::Nats::start().unwrap();
        let config = NatsConfig { url: server.url(), ..NatsConfig::default() };
        Bus::connect_within(&config, SOON).await.unwrap();
        server.kill().unwrap();
        let error = Bus::connect_within(&config, Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.to_string(), "no server answered within 100ms");
    }

    #[tokio::test]
    async fn requests_go_on_after_the_server_came_back() {
        let mut server = testkit::Nats::start().unwrap();
        let bus = connect(&server).await;
        let _answering = locate(&bus, free(), || async { Ok(endpoints("here")) }).await;
        bus.call(LocateRequest {}, SOON).await.unwrap();
        server.kill().unwrap();
        server.restart().unwrap();
        let answered = async { while bus.call(LocateRequest {}, Duration::from_secs(1)).await.is_err() {} };
        tokio::time::timeout(SOON, answered).await.expect("the bus did not come back");
    }
}

fn event(reason: &str) -> Event {
    let event = Event::new(EventKind::Fallback, reason, "pulled the ordinary way");
    Event { image: "registry/app:1".to_owned(), ..event }.with("layer_id", "sha256:1")
}

async fn events_reach_everyone_who_listens(bus: Bus) {
    let mut listeners = [bus.listen_to_events().await.unwrap(), bus.listen_to_events().await.unwrap()];
    bus.clone().events().tell(event("mesh-away"));
    for listener in &mut listeners {
        let told = tokio::time::timeout(SOON, listener.next()).await.unwrap().unwrap();
        assert!(!told.id.is_empty() && told.at_ms > 0, "{told:?}");
        assert_eq!(Event { id: String::new(), at_ms: 0, ..told }, event("mesh-away"));
    }
}

async fn an_event_needs_no_listener_and_is_kept(bus: Bus) {
    for reason in ["one", "two"] {
        bus.events().tell(event(reason));
    }
    let reasons = |events: &[Event]| events.iter().map(|event| event.reason.clone()).collect::<Vec<_>>();
    assert_eq!(reasons(&bus.events().recent()), ["one", "two"]);
    let following = bus.events().recent_and_next();
    bus.events().tell(event("three"));
    let followed: Vec<Event> = tokio::time::timeout(SOON, following.take(3).collect()).await.unwrap();
    assert_eq!(reasons(&followed), ["one", "two", "three"]);
}

async fn what_is_told_reaches_everyone_who_listens_to_its_subject(bus: Bus) {
    let teller = bus.teller("test.told");
    assert!(teller.tell(&event("before")), "nobody has to listen");
    let mut listeners: [ToldStream<Event>; 2] =
        [bus.listen_to("test.told").await.unwrap(), bus.listen_to("test.told").await.unwrap()];
    bus.teller("test.else").tell(&event("elsewhere"));
    let large = Event { message: "x".repeat(MESSAGE_MAX), ..event("large") };
    assert!(!teller.tell(&large), "it can reach nobody");
    teller.clone().tell(&event("told"));
    for listener in &mut listeners {
        // On a network it may still be on its way when somebody begins to listen.
        let mut told = std::pin::pin!(listener.filter(|told| std::future::ready(told.reason != "before")));
        let told = tokio::time::timeout(SOON, told.next()).await.unwrap().unwrap();
        assert_eq!(told, event("told"));
    }
}

#[tokio::test]
async fn telling_waits_for_no_server_and_says_what_is_lost() {
    let mut server = testkit::Nats::start().unwrap();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let mut listener: ToldStream<Event> = there.listen_to("test.told").await.unwrap();
    let teller = here.teller("test.told");
    server.kill().unwrap();
    // Far more than wait anywhere.
    let one = Event { message: "x".repeat(100_000), ..event("waits") };
    let kept = (0..1_000).filter(|_| teller.tell(&one)).count();
    assert!((10..100).contains(&kept), "{kept} were kept");
    server.restart().unwrap();
    let heard = async {
        loop {
            teller.tell(&event("after"));
            let next = tokio::time::timeout(Duration::from_millis(200), listener.next()).await;
            if next.is_ok_and(|told| told.unwrap().reason == "after") {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, heard).await.expect("telling did not go on");
}

#[tokio::test]
async fn events_cross_processes_and_wait_for_no_server() {
    let mut server = testkit::Nats::start().unwrap();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let mut listener = there.listen_to_events().await.unwrap();
    until_heard(&here, &mut listener, "before").await;
    assert!(there.events().recent().is_empty(), "each process keeps its own");
    server.kill().unwrap();
    // Far more than wait anywhere: telling goes on.
    (0..10_000).for_each(|number| here.events().tell(event(&number.to_string())));
    server.restart().unwrap();
    until_heard(&here, &mut listener, "after").await;
}

/// Tells events until one is heard: what is told before the listener's own connection stands is for nobody.
async fn until_heard(bus: &Bus, listener: &mut EventStream, reason: &str) {
    let told = async {
        for number in 0.. {
            bus.events().tell(event(&format!("{reason} {number}")));
            let next = tokio::time::timeout(Duration::from_millis(200), listener.next()).await;
            if next.is_ok_and(|event| event.unwrap().reason.starts_with(reason)) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, told).await.expect("no event came");
}

fn login(server: &testkit::Nats, login: &testkit::nats::Login) -> NatsConfig {
    NatsConfig {
        url: server.url().replace("nats://", "tls://"),
        nkey_seed_file: Some(login.nkey_seed_file.clone()),
        ca_file: Some(login.certificates.ca.clone()),
        certificate_file: Some(login.certificates.client.clone()),
        key_file: Some(login.certificates.client_key.clone()),
        ..NatsConfig::default()
    }
}

#[tokio::test]
async fn a_server_with_tls_and_nkeys_serves_who_may_log_in_and_nobody_else() {
    let (server, may) = testkit::Nats::secured().unwrap();
    let config = login(&server, &may);
    let bus = Bus::connect(&config).await.unwrap();
    let _answering = locate(&bus, free(), || async { Ok(endpoints("one")) }).await;
    let reply = bus.call(LocateRequest {}, SOON).await.unwrap();
    assert_eq!(reply, endpoints("one"));

    let stranger = nkeys::KeyPair::new_user().seed().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let stranger_file = folder.path().join("stranger.nk");
    std::fs::write(&stranger_file, stranger).unwrap();
    let others = [
        ("another nkey", NatsConfig { nkey_seed_file: Some(stranger_file), ..config.clone() }),
        ("no nkey", NatsConfig { nkey_seed_file: None, ..config.clone() }),
        ("no certificate", NatsConfig { certificate_file: None, key_file: None, ..config.clone() }),
        ("no authority", NatsConfig { ca_file: None, ..config.clone() }),
    ];
    for (what, config) in others {
        let refused = async {
            let bus = Bus::connect(&config).await?;
            let reply: Result<LocateReply, Status> = bus.call(LocateRequest {}, Duration::from_secs(1)).await;
            anyhow::Ok(reply?)
        };
        refused.await.expect_err(what);
    }
}
