//! Somebody answers in a fetcher's place, with what real fetchers signed for other questions. Needs root and /dev/fuse, as the
//! frontend does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(dead_code, reason = "the mesh is that of other tests, too")]

mod mesh;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus::{Answer, Bus};
use proto::resolve_reply::Answer as Said;
use proto::{FollowRequest, ResolveReply, ResolveRequest};
use testkit::Tarball;
use tonic::Code;

use mesh::{Mesh, noise};

const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the image is here.
async fn ask(bus: &Bus, request: ResolveRequest) -> ResolveReply {
    let (project, node) = (request.project.clone(), request.node.clone());
    let mut reply = bus.call(request, PATIENCE).await.unwrap();
    while let Some(Said::Importing(ticket)) = &reply.answer {
        let (named, project, node) = (ticket.ticket.clone(), project.clone(), node.clone());
        let follow = FollowRequest { ticket: named, wait_ms: 1000, seen_revision: 0, project, node };
        reply = bus.call_instance(&ticket.instance, follow, PATIENCE).await.unwrap();
    }
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_answer_to_another_question_is_none() {
    let mut mesh = Mesh::start().await;
    let file = |name: &str| Tarball::new().file("file", &noise(name, 1000)).finish();
    mesh.image("one", file("one"));
    mesh.image("two", file("two"));
    // What the node reaches is not the fetcher.
    let honest = std::mem::replace(&mut mesh.bus, Bus::in_process());
    let (one, two) = (mesh.layout.reference("one"), mesh.layout.reference("two"));
    let answer = Arc::new(Mutex::new(None::<ResolveReply>));
    let given = answer.clone();
    let _between = mesh
        .bus
        .answer(Answer { in_flight: 8, instance: None }, move |_: ResolveRequest| {
            let answer = given.lock().unwrap().clone();
            std::future::ready(answer.ok_or_else(|| tonic::Status::unavailable("later")))
        })
        .await
        .unwrap();
    let target = mesh.target("root");
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    let asked = |reference: &str| ResolveRequest {
        node: "node".to_owned(),
        reference: reference.to_owned(),
        ..mesh.request("one", &target).image.unwrap()
    };
    // For another image; for this one, some time ago; and as an older fetcher had it, with nothing to hold on to.
    let other = ask(&honest, asked(&two)).await;
    let earlier = ask(&honest, asked(&one)).await;
    let mut bare = earlier.clone();
    if let Some(Said::Resolved(resolved)) = &mut bare.answer {
        resolved.resolution = None;
    }
    for reply in [other, earlier, bare] {
        *answer.lock().unwrap() = Some(reply);
        let refused = node.mount(mesh.request("one", &target)).await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss, "{refused}");
        assert!(refused.message().contains("the answer is not to be trusted"), "{refused}");
    }
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "something is mounted");
    node.stop().await;
}
