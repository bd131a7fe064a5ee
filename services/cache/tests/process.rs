//! The binary as a process, found over a real NATS server, ended by a signal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::collections::HashMap;
use std::process::Stdio;

use bus::{Bus, NatsConfig};
use common::{Grants, SOON, chunk, deadline, put_map, trusted_key, with_grant};
use proto::content_client::ContentClient;
use proto::{ChunksRequest, LocateRequest};
use store::Store;
use tokio::process::{Child, Command};
use tonic::Code;

fn spawn(settings: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cache"));
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

#[tokio::test]
async fn serves_until_it_is_told_to_end() {
    let nats = testkit::Nats::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap();
    let (digest, stored) = chunk(1, 1000);
    let project = store.project("").unwrap();
    project.put_chunk(digest, stored.clone()).await.unwrap();
    let map = put_map(&project, &[(digest, stored.clone())]).await;
    let mut cache = spawn(&[
        format!("nats.url={}", nats.url()),
        format!("store.url={}", folder.path().display()),
        format!("cache.trusted_keys=[\"{}\"]", trusted_key()),
        "cache.memory=64MiB".to_owned(),
    ]);

    let bus = Bus::connect(&NatsConfig { url: nats.url(), ..NatsConfig::default() }).await.unwrap();
    let located = bus.call(LocateRequest::default(), SOON).await.unwrap();
    let mut client = ContentClient::connect(located.endpoints[0].clone()).await.unwrap();
    let request = ChunksRequest { digests: vec![digest.as_bytes().to_vec()], ..ChunksRequest::default() };
    let request = with_grant(request, Some(&Grants::of_indexes(digest, map)));
    let mut stream = client.get_chunks(request).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().data, stored);
    assert!(stream.message().await.unwrap().is_none());

    // The shell's own: the program is not on every machine.
    let kill = format!("kill -TERM {}", cache.id().unwrap());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert!(deadline(cache.wait()).await.unwrap().success());
    let gone = bus.call_once(LocateRequest::default(), SOON).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_wrong_configuration_is_a_failure_that_names_it() {
    for (setting, named) in [
        ("cache.memry=1GiB", "memry"),
        ("cache.trusted_keys=['ab']", "trusted_keys"),
        ("cache.memory=1MiB", "cache.memory"),
        ("store.url=", "store"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cache"));
        command.args(["--set", &format!("store.url={}", folder.path().display()), "--set", setting]);
        let output = deadline(command.kill_on_drop(true).output()).await.unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && complaint.contains(named), "{setting}: {complaint}");
    }
}
