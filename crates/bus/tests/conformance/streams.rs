//! What streams promise, on either transport.

use std::time::Duration;

use bus::{Bus, Consumer, ConsumerConfig, Delivery, NatsConfig, Outgoing, Stream, StreamConfig};
use prost::Message as _;
use proto::{Event, EventKind};
use tonic::Code;

use super::{SOON, connect, event};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Until something comes again; and how long is waited for what must not come.
const ACK_WAIT: Duration = Duration::from_secs(1);
const NOT: Duration = Duration::from_millis(500);

fn config() -> StreamConfig {
    StreamConfig {
        name: "TEST".to_owned(),
        subjects: vec!["test.*".to_owned()],
        max_age: DAY,
        max_bytes: 8 * 1024 * 1024,
        duplicate_window: Duration::from_secs(120),
    }
}

fn consumer(name: &str) -> ConsumerConfig {
    ConsumerConfig {
        name: name.to_owned(),
        subjects: Vec::new(),
        ack_wait: Duration::from_secs(30),
        backoff: vec![Duration::from_millis(1)],
        max_in_flight: 100,
    }
}

async fn publish(stream: &Stream, subject: &str, id: &str) -> bool {
    let message = Outgoing {
        subject: subject.to_owned(),
        id: id.to_owned(),
        headers: vec![("ce-id", id.to_owned())],
        payload: format!("payload of {id}").into(),
    };
    stream.publish(message).await.unwrap().duplicate
}

async fn next(consumer: &mut Consumer, max: usize) -> Vec<Delivery> {
    tokio::time::timeout(SOON, consumer.next(max)).await.expect("no message came").unwrap()
}

/// So many, however they come.
async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.extend(next(consumer, count - taken.len()).await);
    }
    taken
}

async fn nothing_comes(consumer: &mut Consumer) {
    let taken = tokio::time::timeout(NOT, consumer.next(10)).await;
    assert!(taken.is_err(), "{:?}", taken.unwrap());
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.header("ce-id").unwrap()).collect()
}

pub(super) async fn what_is_published_is_stored_once_and_comes_in_order(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    for (id, duplicate) in [("a", false), ("b", false), ("a", true), ("c", false)] {
        assert_eq!(publish(&stream, "test.one", id).await, duplicate, "{id}");
    }
    let mut consumer = stream.consume(consumer("one")).await.unwrap();
    let taken = take(&mut consumer, 3).await;
    assert_eq!(ids(&taken), ["a", "b", "c"]);
    assert!(taken.iter().all(|delivery| delivery.attempt == 1 && delivery.subject == "test.one"));
    assert!(taken[0].sequence < taken[1].sequence);
    assert_eq!(taken[1].payload, "payload of b");
    for delivery in taken {
        delivery.ack().await.unwrap();
    }
    publish(&stream, "test.one", "d").await;
    assert_eq!(ids(&next(&mut consumer, 10).await), ["d"]);
}

pub(super) async fn a_consumer_goes_on_where_it_was(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    let config = ConsumerConfig { ack_wait: ACK_WAIT, ..consumer("one") };
    for id in ["a", "b", "c"] {
        publish(&stream, "test.one", id).await;
    }
    let mut first = stream.consume(config.clone()).await.unwrap();
    let mut taken = take(&mut first, 2).await;
    taken.remove(0).ack().await.unwrap();
    // Whoever had the second one is gone.
    drop((taken, first));
    let stream = bus.open_stream(super::streams::config()).await.unwrap();
    let mut second = stream.consume(config).await.unwrap();
    let (mut found, mut again) = (Vec::new(), 0);
    while found.len() < 2 {
        for delivery in next(&mut second, 10).await {
            again = again.max(delivery.attempt);
            found.push(delivery.header("ce-id").unwrap().to_owned());
            delivery.ack().await.unwrap();
        }
    }
    found.sort();
    assert_eq!((found, again), (vec!["b".to_owned(), "c".to_owned()], 2));
    nothing_comes(&mut second).await;
}

pub(super) async fn what_is_given_back_comes_again_after_its_pause(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    let mut consumer = stream.consume(consumer("one")).await.unwrap();
    publish(&stream, "test.one", "a").await;
    for attempt in 1..4 {
        let delivery = next(&mut consumer, 1).await.remove(0);
        assert_eq!(delivery.attempt, attempt);
        delivery.retry().await.unwrap();
    }
    next(&mut consumer, 1).await.remove(0).ack().await.unwrap();
    nothing_comes(&mut consumer).await;
}

pub(super) async fn what_is_worked_on_comes_to_nobody_else(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    let config = ConsumerConfig { ack_wait: ACK_WAIT * 4, ..consumer("one") };
    let mut consumer = stream.consume(config.clone()).await.unwrap();
    publish(&stream, "test.one", "a").await;
    let delivery = next(&mut consumer, 1).await.remove(0);
    let mut other = stream.consume(config).await.unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < ACK_WAIT * 6 {
        delivery.in_progress().await.unwrap();
        let other = tokio::time::timeout(Duration::from_millis(100), other.next(1)).await;
        assert!(other.is_err(), "after {:?}: {other:?}", begun.elapsed());
    }
    delivery.ack().await.unwrap();
}

pub(super) async fn what_is_given_up_does_not_come_again(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    let config = ConsumerConfig { ack_wait: ACK_WAIT, ..consumer("one") };
    let mut consumer = stream.consume(config).await.unwrap();
    publish(&stream, "test.one", "a").await;
    next(&mut consumer, 1).await.remove(0).give_up().await.unwrap();
    tokio::time::sleep(ACK_WAIT).await;
    nothing_comes(&mut consumer).await;
}

pub(super) async fn only_so_many_are_in_flight(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    let mut consumer = stream.consume(ConsumerConfig { max_in_flight: 2, ..consumer("one") }).await.unwrap();
    for id in ["a", "b", "c"] {
        publish(&stream, "test.one", id).await;
    }
    let mut taken = take(&mut consumer, 2).await;
    nothing_comes(&mut consumer).await;
    taken.remove(0).ack().await.unwrap();
    assert_eq!(ids(&next(&mut consumer, 10).await), ["c"]);
}

pub(super) async fn each_consumer_has_a_place_of_its_own_and_what_it_wants(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    let mut all = stream.consume(consumer("all")).await.unwrap();
    let only = ConsumerConfig { subjects: vec!["test.two".to_owned()], ..consumer("only") };
    let mut only = stream.consume(only).await.unwrap();
    for (subject, id) in [("test.one", "a"), ("test.two", "b"), ("test.one", "c"), ("test.two", "d")] {
        publish(&stream, subject, id).await;
    }
    assert_eq!(ids(&take(&mut all, 4).await), ["a", "b", "c", "d"]);
    assert_eq!(ids(&take(&mut only, 2).await), ["b", "d"]);
    nothing_comes(&mut only).await;
}

pub(super) async fn the_oldest_go_first(bus: Bus) {
    let stream = bus.open_stream(StreamConfig { max_bytes: 40_000, ..config() }).await.unwrap();
    for id in 0..100 {
        let message = Outgoing {
            subject: "test.one".to_owned(),
            id: id.to_string(),
            headers: vec![("ce-id", id.to_string())],
            payload: vec![0; 1_000].into(),
        };
        stream.publish(message).await.unwrap();
    }
    let mut consumer = stream.consume(consumer("one")).await.unwrap();
    let mut kept = Vec::new();
    while kept.last().is_none_or(|last| last != "99") {
        kept.extend(next(&mut consumer, 100).await.iter().map(|it| it.header("ce-id").unwrap().to_owned()));
    }
    assert!((10..40).contains(&kept.len()), "{kept:?}");
}

pub(super) async fn a_stream_refuses_what_it_does_not_keep(bus: Bus) {
    let stream = bus.open_stream(config()).await.unwrap();
    let elsewhere = Outgoing { subject: "elsewhere".to_owned(), ..Outgoing::default() };
    assert!(stream.publish(elsewhere).await.is_err());
    let long = Outgoing {
        subject: "test.one".to_owned(),
        payload: vec![0; 2 * bus::MESSAGE_MAX].into(),
        ..Outgoing::default()
    };
    assert_eq!(stream.publish(long).await.unwrap_err().code(), Code::InvalidArgument);
    for name in ["", "a.b", "a b", "*"] {
        let refused = bus.open_stream(StreamConfig { name: name.to_owned(), ..config() }).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "{name}");
        assert_eq!(stream.consume(consumer(name)).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

fn of_events() -> StreamConfig {
    StreamConfig { name: "EVENTS".to_owned(), subjects: vec!["sluice.v1.event.*".to_owned()], ..config() }
}

pub(super) async fn events_go_into_the_stream_that_keeps_them(bus: Bus) {
    let stream = bus.open_stream(of_events()).await.unwrap();
    let mut consumer = stream.consume(consumer("one")).await.unwrap();
    bus.events().told_by("frontend", "node-1");
    bus.events().tell(event("no-room"));
    let delivery = next(&mut consumer, 1).await.remove(0);
    let told = Event::decode(delivery.payload.clone()).unwrap();
    assert_eq!((told.kind(), told.reason.as_str()), (EventKind::Fallback, "no-room"));
    assert_eq!((told.service.as_str(), told.node.as_str()), ("frontend", "node-1"));
    let header = |name| delivery.header(name).unwrap();
    assert_eq!((header("ce-specversion"), header("ce-id")), ("1.0", told.id.as_str()));
    assert_eq!(header("ce-type"), "dev.sluice.image.fallback.v1");
    assert_eq!(header("ce-source"), "/nodes/node-1/frontend");
    assert_eq!(header("ce-datacontenttype"), "application/protobuf");
    assert_eq!(delivery.subject, "sluice.v1.event.fallback");
    tokio::time::timeout(SOON, bus.events().settle(SOON)).await.expect("settling hangs");
}

/// Each of them until none comes any more; their ids are different.
async fn drain(consumer: &mut Consumer, until: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut all = Vec::new();
    let taken = async {
        while !until(&all) {
            let Ok(taken) = consumer.next(100).await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            for delivery in taken {
                all.push(Event::decode(delivery.payload.clone()).unwrap());
                delivery.ack().await.unwrap();
            }
        }
    };
    tokio::time::timeout(SOON * 2, taken).await.expect("not all came");
    let ids: std::collections::BTreeSet<&str> = all.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.len(), all.len(), "one came twice");
    all
}

mod nats_only {
    use super::*;

    #[tokio::test]
    async fn a_stream_and_its_consumers_outlive_the_server_and_events_wait_for_it() {
        let mut server = testkit::Nats::start().unwrap();
        let (here, there) = (connect(&server).await, connect(&server).await);
        let stream = there.open_stream(of_events()).await.unwrap();
        let mut consumer = stream.consume(super::consumer("one")).await.unwrap();
        let reasons = |from: usize, to: usize| (from..to).map(|number| number.to_string());
        reasons(0, 50).for_each(|reason| here.events().tell(event(&reason)));
        drain(&mut consumer, |all| all.len() == 50).await;
        server.kill().unwrap();
        reasons(50, 150).for_each(|reason| here.events().tell(event(&reason)));
        server.restart().unwrap();
        let is_there =
            |all: &[Event], number: usize| all.iter().any(|event| event.reason == number.to_string());
        let all_there =
            |all: &[Event]| (50..150).all(|number| is_there(all, number)) && all.iter().any(is_back);
        let after = drain(&mut consumer, all_there).await;
        let mut told: Vec<usize> = after.iter().filter_map(|event| event.reason.parse().ok()).collect();
        // A server that is killed may forget what was acknowledged last.
        told.retain(|number| *number >= 50);
        told.sort_unstable();
        assert_eq!(told, (50..150).collect::<Vec<_>>());
        // And that it was away.
        let back = after.iter().find(|event| is_back(event)).unwrap();
        assert_eq!(back.kind(), EventKind::Degraded);
        assert!(back.details["away"].ends_with('s'), "{back:?}");
    }

    fn is_back(event: &Event) -> bool {
        event.reason == "nats-was-away"
    }

    #[tokio::test]
    async fn events_are_told_where_nothing_keeps_them() {
        let server = testkit::Nats::without_jetstream().unwrap();
        let (here, there) = (connect(&server).await, connect(&server).await);
        assert_eq!(here.open_stream(of_events()).await.unwrap_err().code(), Code::Unavailable);
        let mut listener = there.listen_to_events().await.unwrap();
        super::super::until_heard(&here, &mut listener, "before").await;
        // Also those that come after it was noticed.
        tokio::time::timeout(SOON * 2, here.events().settle(SOON * 2)).await.unwrap();
        super::super::until_heard(&here, &mut listener, "after").await;
    }

    #[tokio::test]
    async fn events_are_kept_from_when_somebody_makes_the_stream_on() {
        let server = testkit::Nats::start().unwrap();
        let (here, there) = (connect(&server).await, connect(&server).await);
        let stream = there.open_stream(of_events()).await.unwrap();
        let mut consumer = stream.consume(super::consumer("one")).await.unwrap();
        here.events().tell(event("kept"));
        let told = drain(&mut consumer, |all| !all.is_empty()).await;
        assert_eq!(told[0].reason, "kept");
    }

    /// Ten seconds of two thousand events a second while the server is away: memory stays within the bound, what is lost is lost
    /// at the emitter, and what was kept arrives once.
    #[tokio::test]
    async fn many_events_take_bounded_memory() {
        let mut server = testkit::Nats::start().unwrap();
        let (here, there) = (connect(&server).await, connect(&server).await);
        let stream = there.open_stream(of_events()).await.unwrap();
        let mut consumer = stream.consume(super::consumer("one")).await.unwrap();
        here.events().tell(event("first"));
        drain(&mut consumer, |all| all.len() == 1).await;
        server.kill().unwrap();
        let before = resident();
        for number in 0..20_000 {
            let told = Event { message: "x".repeat(1_000), ..event(&number.to_string()) };
            let details = (0..8).fold(told, |told, detail| told.with(&detail.to_string(), "y".repeat(1_000)));
            here.events().tell(details);
        }
        // All of it would be 200 MB.
        let grown = resident().saturating_sub(before);
        assert!(grown < 48 * 1024 * 1024, "{grown} bytes");
        server.restart().unwrap();
        here.events().tell(event("last"));
        let kept = drain(&mut consumer, |all| all.len() > 200).await;
        assert!(kept.len() < 2_000, "{}", kept.len());
    }

    /// Bytes of this process.
    fn resident() -> u64 {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    #[tokio::test]
    async fn a_message_for_others_is_published_and_kept_where_that_is_asked_for() {
        let server = testkit::Nats::start().unwrap();
        let config_of_bus = NatsConfig { url: server.url(), ..NatsConfig::default() };
        let bus = Bus::connect_within(&config_of_bus, SOON).await.unwrap();
        let message = |id: &str| Outgoing {
            subject: "test.ours".to_owned(),
            id: id.to_owned(),
            headers: vec![("ce-id", id.to_owned())],
            ..Outgoing::default()
        };
        bus.publish(message("nobody"), false).await.unwrap();
        let refused = bus.publish(message("kept"), true).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let stream = bus.open_stream(config()).await.unwrap();
        bus.publish(message("kept"), true).await.unwrap();
        let mut consumer = stream.consume(super::consumer("one")).await.unwrap();
        assert_eq!(super::ids(&next(&mut consumer, 1).await), ["kept"]);
    }
}
