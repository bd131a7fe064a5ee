//! Webhooks: what is sent, and what receivers do to it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use events::{FileConfig, SinkConfig, WebhookConfig};
use proto::EventKind;

use crate::harness::{Answer, Asked, Receiver, SOON, Service, event};

fn webhook(receiver: &Receiver, secret_file: Option<PathBuf>) -> SinkConfig {
    let webhook = WebhookConfig {
        url: format!("{}/hook", receiver.url),
        secret_file,
        timeout: Duration::from_secs(2),
        ..WebhookConfig::default()
    };
    SinkConfig { webhook: Some(webhook), ..SinkConfig::default() }
}

fn ids(asked: &[Asked]) -> BTreeSet<String> {
    asked.iter().map(|asked| header(asked, "webhook-id")).collect()
}

fn header(asked: &Asked, name: &str) -> String {
    asked.headers[name].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_event_is_one_signed_cloud_event() {
    let receiver = Receiver::start([], Answer::Status(204)).await;
    let folder = tempfile::tempdir().unwrap();
    let (secret, file) = ([7; 32], folder.path().join("secret"));
    std::fs::write(&file, format!("whsec_{}\n", STANDARD.encode(secret))).unwrap();
    let service = Service::start(&[("hook", webhook(&receiver, Some(file)))]).await;
    service.tell(event(EventKind::Denied, "not-eligible", "r.io/app:1").with("policy", "sizes"));
    let asked = receiver.until(|asked| !asked.is_empty()).await.remove(0);
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/hook"));
    assert_eq!(header(&asked, "content-type"), "application/cloudevents+json; charset=utf-8");
    let told = &service.bus.events().recent()[0];
    assert_eq!(header(&asked, "webhook-id"), told.id);
    assert_eq!(asked.body["id"], told.id.as_str());
    assert_eq!(asked.body["type"], "dev.sluice.image.denied.v1");
    assert_eq!(asked.body["source"], "/nodes/node-1/frontend");
    assert_eq!(asked.body["subject"], "r.io/app:1");
    assert_eq!(asked.body["data"]["details"]["policy"], "sizes");
    // As a receiver checks it.
    let signed =
        [told.id.as_bytes(), b".", header(&asked, "webhook-timestamp").as_bytes(), b".", &asked.raw].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    let expected = format!("v1,{}", STANDARD.encode(hmac::sign(&key, &signed)));
    assert_eq!(header(&asked, "webhook-signature"), expected);
}

#[tokio::test]
async fn what_a_receiver_does_not_take_now_is_sent_again_and_nothing_is_lost() {
    let bad_days = [
        Answer::Status(500),
        Answer::RetryAfter(429, "1"),
        Answer::Status(404),
        Answer::Slow(Duration::from_secs(4), 200),
        Answer::Status(302),
        Answer::Status(503),
    ];
    let receiver = Receiver::start(bad_days, Answer::Status(200)).await;
    let service = Service::start(&[("hook", webhook(&receiver, None))]).await;
    let images: Vec<String> = (0..12).map(|number| format!("r.io/app:{number}")).collect();
    images.iter().for_each(|image| service.tell(event(EventKind::Fallback, "no-room", image)));
    let told: BTreeSet<String> = service.bus.events().recent().into_iter().map(|event| event.id).collect();
    assert_eq!(told.len(), 12);
    let asked = receiver.until(|asked| asked.len() >= 12 + 6 && ids(asked).len() == 12).await;
    assert_eq!(ids(&asked), told);
    assert!(asked.iter().all(|asked| !asked.headers.contains_key("webhook-signature")));
    // Each that was taken was sent once after that: nothing is sent that was answered 200.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(receiver.asked().len(), 18);
}

#[tokio::test]
async fn an_event_that_will_never_be_taken_holds_up_no_other() {
    let receiver = Receiver::start([Answer::Status(422)], Answer::Status(200)).await;
    let service = Service::start(&[("hook", webhook(&receiver, None))]).await;
    service.tell(event(EventKind::Fallback, "no-room", "r.io/app:1"));
    receiver.until(|asked| asked.len() == 1).await;
    service.tell(event(EventKind::Fallback, "no-room", "r.io/app:2"));
    let asked = receiver.until(|asked| asked.len() == 2).await;
    assert_eq!(
        (&asked[0].body["subject"], &asked[1].body["subject"]),
        (&"r.io/app:1".into(), &"r.io/app:2".into())
    );
}

#[tokio::test]
async fn a_receiver_that_hangs_stops_no_other_sink_and_loses_nothing() {
    let (hanging, other) =
        (Receiver::start([], Answer::Hang).await, Receiver::start([], Answer::Status(200)).await);
    let folder = tempfile::tempdir().unwrap();
    let file = FileConfig { path: folder.path().join("events.json"), ..FileConfig::default() };
    let only = SinkConfig { kinds: vec!["denied".to_owned()], ..webhook(&other, None) };
    let sinks = [
        ("hanging", webhook(&hanging, None)),
        ("only", only),
        ("file", SinkConfig { file: Some(file.clone()), ..SinkConfig::default() }),
    ];
    let service = Service::start(&sinks).await;
    let tell = |number: usize| {
        let kind = if number.is_multiple_of(2) { EventKind::Fallback } else { EventKind::Denied };
        service.tell(event(kind, "no-room", &format!("r.io/app:{number}")));
    };
    (0..40).for_each(tell);
    let asked = other.until(|asked| asked.len() == 20).await;
    assert!(asked.iter().all(|asked| asked.body["data"]["kind"] == "denied"));
    let written = || std::fs::read_to_string(&file.path).unwrap_or_default().lines().count();
    let looked = async {
        while written() < 40 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, looked).await.expect("the file did not get them");
    // Those that hung come once it answers.
    hanging.until(|asked| !asked.is_empty()).await;
    hanging.now_answers(Answer::Status(200));
    hanging.until(|asked| ids(asked).len() == 40).await;
}

#[tokio::test]
async fn a_service_that_ends_gives_back_what_it_has() {
    let receiver = Receiver::start([], Answer::Hang).await;
    let service = Service::start(&[("hook", webhook(&receiver, None))]).await;
    let bus = service.bus.clone();
    service.tell(event(EventKind::Fallback, "no-room", "r.io/app:1"));
    receiver.until(|asked| !asked.is_empty()).await;
    service.stop().await;
    receiver.now_answers(Answer::Status(200));
    let before = receiver.asked().len();
    let _next = Service::on(bus, &[("hook", webhook(&receiver, None))]).await;
    receiver.until(|asked| asked.len() > before).await;
}
