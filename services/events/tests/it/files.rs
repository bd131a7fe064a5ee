//! Files of JSON lines.

use std::time::Duration;

use events::{FileConfig, SinkConfig};
use proto::EventKind;
use serde_json::Value;

use crate::harness::{SOON, Service, event};

fn file(path: &std::path::Path) -> SinkConfig {
    let file = FileConfig { path: path.to_owned(), ..FileConfig::default() };
    SinkConfig { file: Some(file), ..SinkConfig::default() }
}

async fn lines(path: &std::path::Path, count: usize) -> Vec<Value> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    let looked = async {
        while read().lines().count() < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, looked).await.expect("not all were written");
    read().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn each_event_is_a_line_over_a_restart_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.json");
    let service = Service::start(&[("file", file(&path))]).await;
    let bus = service.bus.clone();
    service.tell(event(EventKind::Streaming, "image-streaming", "r.io/app:1"));
    lines(&path, 1).await;
    service.stop().await;
    // Nobody is there to write this one.
    bus.events().tell(event(EventKind::Complete, "image-complete", "r.io/app:1"));
    let _service = Service::on(bus, &[("file", file(&path))]).await;
    let written = lines(&path, 2).await;
    assert_eq!(written.len(), 2, "{written:#?}");
    assert_eq!(written[0]["type"], "dev.sluice.image.streaming.v1");
    assert_eq!(written[0]["data"]["message"], "Image r.io/app:1 is backed by image streaming.");
    assert_eq!(written[1]["type"], "dev.sluice.image.complete.v1");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("taken/events.json");
    // Something else stands where its folder should.
    std::fs::write(path.parent().unwrap(), "").unwrap();
    let service = Service::start(&[("file", file(&path))]).await;
    (0..5).for_each(|number| service.tell(event(EventKind::Fallback, "no-room", &number.to_string())));
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::remove_file(path.parent().unwrap()).unwrap();
    let subjects: Vec<Value> = lines(&path, 5).await.iter().map(|line| line["subject"].clone()).collect();
    assert_eq!(subjects, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn thousands_of_events_are_written_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.json");
    let service = Service::start(&[("file", file(&path))]).await;
    (0..4_000).for_each(|number| service.tell(event(EventKind::Fallback, "no-room", &number.to_string())));
    let written = lines(&path, 4_000).await;
    let ids: std::collections::BTreeSet<&str> =
        written.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!((written.len(), ids.len()), (4_000, 4_000));
}
