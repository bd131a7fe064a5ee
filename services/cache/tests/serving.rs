//! A real client against a real cache on a folder store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use cache::{Cache, Config};
use common::{Grants, SOON, Setup, chunk, deadline, manifest};
use image::Digest;
use proto::chunk_frame::Failure;
use proto::chunks_request::Priority;
use proto::index_request::Kind;
use proto::signed::TrustedKeys;
use proto::{ChunksRequest, IndexRequest, LocateRequest, RefreshRequest, RepairReply, RepairRequest};
use store::{Index, verify};
use tonic::Code;

#[tokio::test]
async fn chunks_come_in_the_order_asked_for() {
    let setup = Setup::start().await;
    let chunks: Vec<_> = (0..100_u8).map(|seed| chunk(seed, 1000)).collect();
    for (digest, stored) in &chunks {
        setup.project().put_chunk(*digest, stored.clone()).await.unwrap();
    }
    for priority in [Priority::Demand, Priority::Prefetch, Priority::Background] {
        // Some are asked for twice, and the order is not the one they were stored in.
        let asked: Vec<_> = (0..150).map(|at| chunks[(at * 37) % 100].clone()).collect();
        let received = setup.chunks(&asked, priority).await.unwrap();
        let expected: Vec<_> = asked.into_iter().map(|(_, stored)| Ok(stored)).collect();
        assert_eq!(received, expected, "{priority:?}");
    }
    assert!(setup.chunks(&[], Priority::Demand).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_large_chunk_comes_in_several_frames() {
    let setup = Setup::start().await;
    let large = chunk(1, 2 * 1024 * 1024);
    assert!(large.1.len() > 2 * 1024 * 1024, "not compressible");
    setup.project().put_chunk(large.0, large.1.clone()).await.unwrap();
    let mut stream = setup.request(std::slice::from_ref(&large), Priority::Demand).await.unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = stream.message().await.unwrap() {
        assert!(frame.data.len() <= 1024 * 1024);
        frames.push(frame);
    }
    assert_eq!(frames.iter().map(|frame| frame.last).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(frames.iter().flat_map(|frame| frame.data.to_vec()).collect::<Bytes>(), large.1);
}

#[tokio::test]
async fn one_chunk_that_fails_does_not_stop_the_others() {
    let setup = Setup::start().await;
    let (good, missing, corrupt) = (chunk(1, 100), chunk(2, 100), chunk(3, 100));
    setup.project().put_chunk(good.0, good.1.clone()).await.unwrap();
    setup.project().put_chunk(corrupt.0, good.1.clone()).await.unwrap();
    let asked = [missing, good.clone(), corrupt, good.clone()];
    let received = setup.chunks(&asked, Priority::Prefetch).await.unwrap();
    let expected = [Err(Failure::Missing), Ok(good.1.clone()), Err(Failure::Corrupt), Ok(good.1)];
    assert_eq!(received, expected);
}

#[tokio::test]
async fn the_store_is_read_once() {
    let setup = Setup::start().await;
    let (digest, stored) = chunk(1, 1000);
    setup.project().put_chunk(digest, stored.clone()).await.unwrap();
    let asked = vec![(digest, stored.clone()); 64];
    let received = setup.chunks(&asked, Priority::Demand).await.unwrap();
    assert!(received.iter().all(|chunk| chunk.as_ref() == Ok(&stored)));
    // Gone from the store, and still served: it was not read again.
    setup.project().delete_chunk(digest).await.unwrap();
    assert_eq!(setup.chunks(&asked[..1], Priority::Demand).await.unwrap(), [Ok(stored)]);
}

#[tokio::test]
async fn what_stands_in_the_store_anew_is_read_again() {
    let setup = Setup::start().await;
    let plain = vec![7; 100_000];
    let digest = Digest::of(&plain);
    let frame = |level| Bytes::from(zstd::bulk::compress(&plain, level).unwrap());
    let (first, better) = (frame(-50), frame(18));
    let (kept, spoilt) = (chunk(1, 1000), chunk(2, 1000));
    for (digest, stored) in [(digest, first.clone()), kept.clone(), spoilt.clone()] {
        setup.project().put_chunk(digest, stored).await.unwrap();
    }
    let asked = [(digest, first.clone()), kept.clone(), spoilt.clone()];
    let served = setup.chunks(&asked, Priority::Demand).await.unwrap();
    assert_eq!(served, [Ok(first), Ok(kept.1.clone()), Ok(spoilt.1.clone())]);

    setup.project().replace_chunk(digest, better.clone()).await.unwrap();
    setup.project().replace_chunk(spoilt.0, kept.1.clone()).await.unwrap();
    setup.project().delete_chunk(kept.0).await.unwrap();
    let chunks: Vec<_> = asked.iter().rev().map(|(digest, _)| digest.as_bytes().to_vec()).collect();
    let request = RefreshRequest { project: String::new(), chunks };
    assert_eq!(setup.bus.gather(request, SOON).await.unwrap().len(), 1);
    // What cannot be read, or is not what it should be, stays as it was.
    let expected = [Ok(better), Ok(kept.1), Ok(spoilt.1)];
    deadline(async {
        while setup.chunks(&asked, Priority::Demand).await.unwrap() != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    let bad = |chunks| setup.bus.call(RefreshRequest { project: String::new(), chunks }, SOON);
    assert_eq!(bad(vec![vec![1; 31]]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(bad(vec![vec![1; 32]; 257]).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn indexes_come_whole() {
    let setup = Setup::start().await;
    let plain = chunk(9, 3_000_000).1;
    let sealed = Bytes::from(verify::seal_index(&plain).unwrap());
    let digest = Digest::of(&plain);
    setup.project().put_index(Index::Tree, digest, sealed.clone()).await.unwrap();
    assert_eq!(setup.index(Kind::Tree, digest).await.unwrap(), sealed);
    assert_eq!(setup.index(Kind::Map, digest).await.unwrap_err().code(), Code::NotFound);

    let other = Digest::of(b"other");
    setup.project().put_index(Index::Map, other, sealed).await.unwrap();
    assert_eq!(setup.index(Kind::Map, other).await.unwrap_err().code(), Code::DataLoss);
}

#[tokio::test]
async fn nothing_without_a_valid_grant_of_the_project() {
    let setup = Setup::start().await;
    let (digest, stored) = chunk(1, 100);
    setup.project().put_chunk(digest, stored.clone()).await.unwrap();
    let asked = || ChunksRequest { digests: vec![digest.as_bytes().to_vec()], ..ChunksRequest::default() };
    let index = || IndexRequest { digest: digest.as_bytes().to_vec(), ..IndexRequest::default() };
    let cases = [
        (None, Code::Unauthenticated),
        (Some(Grants::forged()), Code::Unauthenticated),
        (Some(Grants::expired()), Code::Unauthenticated),
        (Some(Grants::of_project("other")), Code::PermissionDenied),
    ];
    for (grant, code) in cases {
        let mut client = setup.client().await;
        let refused = client.get_chunks(common::with_grant(asked(), grant.as_ref())).await.unwrap_err();
        assert_eq!(refused.code(), code, "{}", refused.message());
        let refused = client.get_index(common::with_grant(index(), grant.as_ref())).await.unwrap_err();
        assert_eq!(refused.code(), code, "{}", refused.message());
    }
    // A grant of another project opens that project only.
    let mut client = setup.client().await;
    let request = ChunksRequest { project: "other".to_owned(), ..asked() };
    let grant = Grants::of_project("other");
    let mut stream = client.get_chunks(common::with_grant(request, Some(&grant))).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().failure(), Failure::Missing);
    // A grant of one image is no grant of another.
    let request = ChunksRequest { manifest_digest: manifest(7), ..asked() };
    let refused = client.get_chunks(common::with_grant(request, Some(&Grants::valid()))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let setup = Setup::start().await;
    let grant = Grants::valid();
    let mut client = setup.client().await;
    let bad = [
        ChunksRequest { digests: vec![vec![1; 31]], ..ChunksRequest::default() },
        ChunksRequest { digests: vec![vec![1; 32]; 16 * 1024 + 1], ..ChunksRequest::default() },
    ];
    for request in bad {
        let refused = client.get_chunks(common::with_grant(request, Some(&grant))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let outside = Grants::of_project("../etc");
    let request = ChunksRequest { project: "../etc".to_owned(), ..ChunksRequest::default() };
    let refused = client.get_chunks(common::with_grant(request, Some(&outside))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn bad_content_is_repaired_while_a_process_waits() {
    let setup = Setup::start().await;
    let (corrupt, missing) = (chunk(1, 100), chunk(2, 100));
    setup.project().put_chunk(corrupt.0, missing.1.clone()).await.unwrap();
    let (asked_sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let _fetcher = setup
        .bus
        .answer(bus::Answer { in_flight: 4, instance: None }, {
            let (project, chunks) = (setup.project(), [corrupt.clone(), missing.clone()]);
            move |request: RepairRequest| {
                let (project, chunks, asked) = (project.clone(), chunks.clone(), asked_sender.clone());
                async move {
                    for (digest, stored) in chunks {
                        project.replace_chunk(digest, stored).await.unwrap();
                    }
                    asked.send(request).unwrap();
                    Ok(RepairReply { restored: 2 })
                }
            }
        })
        .await
        .unwrap();
    let chunks = [corrupt.clone(), missing.clone()];
    let received = setup.chunks(&chunks, Priority::Demand).await.unwrap();
    assert_eq!(received, [Ok(corrupt.1), Ok(missing.1)]);
    let request = deadline(asked.recv()).await.unwrap();
    assert_eq!(request.manifest_digest, manifest(1));
    assert!(asked.try_recv().is_err(), "one image is repaired once");
}

#[tokio::test]
async fn a_demand_does_not_wait_behind_stalled_downloads() {
    let setup = Setup::start().await;
    let chunks: Vec<_> = (0..200_u8).map(|seed| chunk(seed, 200_000)).collect();
    for (digest, stored) in &chunks {
        setup.project().put_chunk(*digest, stored.clone()).await.unwrap();
    }
    // Downloads that nobody reads: their windows fill up, and they stand still.
    let mut stalled = Vec::new();
    for priority in [Priority::Background; 20].into_iter().chain([Priority::Prefetch; 20]) {
        stalled.push(setup.request(&chunks, priority).await.unwrap());
    }
    let demand = chunk(250, 1000);
    setup.project().put_chunk(demand.0, demand.1.clone()).await.unwrap();
    let received = deadline(setup.chunks(std::slice::from_ref(&demand), Priority::Demand)).await.unwrap();
    assert_eq!(received, [Ok(demand.1)]);
    drop(stalled);
}

#[tokio::test]
async fn says_where_it_is_and_ends_its_streams() {
    let setup = Setup::start().await;
    let located = setup.bus.call(LocateRequest::default(), SOON).await.unwrap();
    assert_eq!(located.endpoints, [format!("http://{}", setup.cache.address())]);

    let chunks: Vec<_> = (0..100_u8).map(|seed| chunk(seed, 500_000)).collect();
    for (digest, stored) in &chunks {
        setup.project().put_chunk(*digest, stored.clone()).await.unwrap();
    }
    let mut open = setup.request(&chunks, Priority::Background).await.unwrap();
    open.message().await.unwrap().unwrap();
    setup.shutdown.cancel();
    let end = async {
        loop {
            match open.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended as if it were whole"),
                Err(status) => return status,
            }
        }
    };
    // Unknown when the connection was gone before the last frame was read.
    let code = deadline(end).await.code();
    assert!(matches!(code, Code::Unavailable | Code::Unknown), "{code:?}");
    setup.tasks.close();
    deadline(setup.tasks.wait()).await;
    let gone = setup.bus.call(LocateRequest::default(), Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable);
}

#[tokio::test]
async fn replicas_name_each_other() {
    let (one, two) = (Setup::start().await, tempfile::tempdir().unwrap());
    let store = store::Store::open(two.path().to_str().unwrap(), &HashMap::new()).unwrap();
    let (bus, shutdown) = (one.bus.clone(), one.shutdown.clone());
    let two = Cache::start(Config::default(), store, bus, TrustedKeys::default(), &one.tasks, shutdown)
        .await
        .unwrap();
    let mut both = [one.cache.endpoint().to_owned(), two.endpoint().to_owned()];
    both.sort();
    let named = async {
        // Each is asked in turn.
        for _ in 0..2 {
            while one.bus.call(LocateRequest::default(), SOON).await.unwrap().endpoints != both {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    deadline(named).await;
}

#[tokio::test]
async fn the_disk_tier_serves_after_a_restart_and_heals_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (digest, stored) = chunk(1, 10_000);
    let setup = Setup::start_on(Some(folder.path())).await;
    setup.project().put_chunk(digest, stored.clone()).await.unwrap();
    assert_eq!(
        setup.chunks(&[(digest, stored.clone())], Priority::Demand).await.unwrap(),
        [Ok(stored.clone())]
    );
    setup.shutdown.cancel();
    setup.tasks.close();
    deadline(setup.tasks.wait()).await;

    // Another store, which never had the chunk.
    let setup = Setup::start_on(Some(folder.path())).await;
    assert_eq!(
        setup.chunks(&[(digest, stored.clone())], Priority::Demand).await.unwrap(),
        [Ok(stored.clone())]
    );
    let healed = async {
        while !setup.project().has_chunk(digest).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    deadline(healed).await;
    assert_eq!(setup.project().chunk(digest).await.unwrap(), stored);
}
