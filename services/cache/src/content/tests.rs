use std::collections::HashMap;

use bus::Bus;
use futures::poll;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::Config;

/// Content on an empty store, and the folder of that store.
async fn content() -> (Content, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap();
    let tiers = Tiers::open(&Config::default()).await.unwrap();
    let tasks = TaskTracker::new();
    let repairs = Repairs::new(Bus::in_process(), tasks.clone(), CancellationToken::new());
    (Content::new(tiers, store, repairs, tasks), folder)
}

fn reader(content: &Content, class: Priority) -> Reader {
    let image = Image { project: "default".to_owned(), manifest: String::new() };
    Reader { project: content.project("").unwrap(), image, class }
}

async fn stored(content: &Content, plain: &[u8]) -> (Digest, Bytes) {
    let (digest, stored) = (Digest::of(plain), Bytes::from(zstd::bulk::compress(plain, 1).unwrap()));
    content.project("").unwrap().put_chunk(digest, stored.clone()).await.unwrap();
    (digest, stored)
}

#[tokio::test]
async fn a_class_that_is_full_holds_up_no_other() {
    let (content, _folder) = content().await;
    let (digest, expected) = stored(&content, b"chunk").await;
    let _downloads = content.backgrounds.acquire_many(BACKGROUNDS_MAX as u32).await.unwrap();
    let _plans = content.prefetches.acquire_many(PREFETCHES_MAX as u32).await.unwrap();

    let (background, demand) = (reader(&content, Priority::Background), reader(&content, Priority::Demand));
    let mut waiting = Box::pin(content.get(&background, Kind::Chunk, digest));
    assert!(poll!(&mut waiting).is_pending());
    assert_eq!(content.get(&demand, Kind::Chunk, digest).await, Ok(expected));
    assert!(poll!(&mut waiting).is_pending());
}

#[tokio::test]
async fn one_name_is_read_once_at_a_time() {
    let (content, _folder) = content().await;
    let (digest, expected) = stored(&content, b"chunk").await;
    let name = |project: &str| Name { project: project.into(), kind: Kind::Chunk, digest };
    let reader = reader(&content, Priority::Demand);
    let first = content.flight(&reader, &name("default"));
    let second = content.flight(&reader, &name("default"));
    let other = content.flight(&reader, &name("other"));
    assert!(first.ptr_eq(&second) && !first.ptr_eq(&other));
    assert_eq!(first.await.unwrap(), Ok(expected));
    other.await.unwrap().unwrap();
    assert!(lock(&content.flights).is_empty());
    assert!(!second.ptr_eq(&content.flight(&reader, &name("default"))));
}

#[tokio::test]
async fn a_failed_read_is_not_remembered() {
    let (content, _folder) = content().await;
    let reader = reader(&content, Priority::Prefetch);
    let digest = Digest::of(b"chunk");
    let missing = content.get(&reader, Kind::Chunk, digest).await;
    assert!(matches!(missing, Err(Unserved::Missing(_))), "{missing:?}");
    let (_, expected) = stored(&content, b"chunk").await;
    assert_eq!(content.get(&reader, Kind::Chunk, digest).await, Ok(expected));
}
