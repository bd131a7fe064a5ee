//! The service on a real NATS server.

use std::time::Duration;

use bus::{Bus, ConsumerConfig, NatsConfig, StreamConfig};
use events::{NatsSinkConfig, SinkConfig};
use proto::EventKind;
use serde_json::Value;

use crate::harness::{SOON, Service, event};

async fn connect(server: &testkit::Nats) -> Bus {
    Bus::connect(&NatsConfig { url: server.url(), ..NatsConfig::default() }).await.unwrap()
}

#[tokio::test]
async fn a_subject_of_the_users_own_gets_json_in_a_stream_of_theirs() {
    let server = testkit::Nats::start().unwrap();
    let (node, theirs) = (connect(&server).await, connect(&server).await);
    let nats = NatsSinkConfig { subject: "ops.sluice".to_owned(), kept: true };
    let sink = SinkConfig { nats: Some(nats), ..SinkConfig::default() };
    let _service = Service::on(connect(&server).await, &[("ours", sink)]).await;
    // Told before their stream is there: it waits.
    node.events().tell(event(EventKind::Denied, "denied", "r.io/app:1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stream = theirs.open_stream(StreamConfig {
        name: "OPS".to_owned(),
        subjects: vec!["ops.>".to_owned()],
        max_age: Duration::from_secs(3_600),
        max_bytes: 1 << 20,
        duplicate_window: Duration::from_secs(60),
    });
    let mut consumer = stream
        .await
        .unwrap()
        .consume(ConsumerConfig {
            name: "me".to_owned(),
            subjects: Vec::new(),
            ack_wait: Duration::from_secs(30),
            backoff: Vec::new(),
            max_in_flight: 10,
        })
        .await
        .unwrap();
    let delivery = tokio::time::timeout(SOON, consumer.next(1)).await.unwrap().unwrap().remove(0);
    assert_eq!(delivery.header("Content-Type"), Some("application/cloudevents+json; charset=utf-8"));
    let json: Value = serde_json::from_slice(&delivery.payload).unwrap();
    assert_eq!(
        (&json["type"], &json["subject"]),
        (&"dev.sluice.image.denied.v1".into(), &"r.io/app:1".into())
    );
}
