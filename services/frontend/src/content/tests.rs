//! What comes, from where, and what never does.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use image::Digest;
use image::record::{ChunkRef, IndexRef};
use proto::chunks_request::Priority;
use store::Index;
use tokio::sync::{mpsc, watch};

use super::testing::{Faults, Site, impatient, noise};
use super::*;

fn patient() -> Options {
    Options { stall_timeout: Duration::from_millis(300), ..Options::default() }
}

async fn chunks(site: &Site, count: u8) -> Vec<ChunkRef> {
    let mut chunks = Vec::new();
    for index in 0..count {
        chunks.push(site.keep(&noise([index, 0, 0], 40_000)).await);
    }
    chunks
}

/// Fetches all and returns them in the order in which they came.
async fn fetch(content: &Content, class: Class, chunks: &[ChunkRef]) -> Vec<Fetched> {
    let (out, mut arrivals) = mpsc::channel(1);
    let (_open, gate) = watch::channel(Class::Background);
    let mut fetched = Vec::new();
    let collecting = async {
        while let Some(arrival) = arrivals.recv().await {
            fetched.push(arrival);
        }
    };
    tokio::join!(content.fetch(class, chunks.to_vec(), gate, out), collecting);
    fetched
}

fn check_all_came(chunks: &[ChunkRef], fetched: &[Fetched]) {
    assert_eq!(fetched.len(), chunks.len());
    for chunk in chunks {
        let found = fetched.iter().find(|fetched| fetched.chunk == *chunk).unwrap();
        let plain = found.result.as_ref().unwrap();
        assert_eq!(Digest::of(&plain.bytes), chunk.digest);
        assert!(plain.stored_len > 0);
    }
}

#[tokio::test]
async fn one_replica_answers_in_the_order_asked() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 12).await;
    let fetched = fetch(&site.content(false, patient()), Class::Prefetch, &chunks).await;
    check_all_came(&chunks, &fetched);
    let order: Vec<ChunkRef> = fetched.iter().map(|fetched| fetched.chunk).collect();
    assert_eq!(order, chunks);
}

#[tokio::test]
async fn chunks_are_spread_over_the_replicas() {
    let site = Site::new(3).await;
    let chunks = chunks(&site, 30).await;
    check_all_came(&chunks, &fetch(&site.content(false, patient()), Class::Background, &chunks).await);
    let shares: Vec<usize> = site.replicas.iter().map(|replica| replica.sent().len()).collect();
    assert_eq!(shares.iter().sum::<usize>(), 30);
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

/// One replica with a fault, one without: everything comes.
async fn check_second_replica_helps(faults: impl Fn(&[ChunkRef]) -> Faults) {
    let site = Site::new(2).await;
    let chunks = chunks(&site, 10).await;
    site.replicas[0].set(faults(&chunks));
    check_all_came(&chunks, &fetch(&site.content(false, patient()), Class::Demand, &chunks).await);
    assert_eq!(site.replicas[1].sent().iter().filter(|(_, class)| *class == Priority::Demand).count(), 10);
}

fn digests(chunks: &[ChunkRef]) -> Vec<Digest> {
    chunks.iter().map(|chunk| chunk.digest).collect()
}

#[tokio::test]
async fn what_one_replica_fails_to_give_the_next_one_gives() {
    check_second_replica_helps(|_| Faults { refuse: true, ..Faults::default() }).await;
    check_second_replica_helps(|_| Faults { deny: true, ..Faults::default() }).await;
    check_second_replica_helps(|chunks| Faults { cut: digests(chunks), ..Faults::default() }).await;
    check_second_replica_helps(|chunks| Faults { stall: digests(chunks), ..Faults::default() }).await;
    check_second_replica_helps(|chunks| Faults { corrupt: digests(chunks), ..Faults::default() }).await;
}

#[tokio::test]
async fn a_replica_that_says_that_the_grant_ended_is_asked_again_under_a_newer_one() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 3).await;
    let stored = Bytes::from(store::verify::seal_index(b"a tree").unwrap());
    let tree = IndexRef { digest: Digest::of(b"a tree"), plain_len: 6, stored_len: stored.len() as u64 };
    site.project().put_index(Index::Tree, tree.digest, stored).await.unwrap();
    // By this machine's clock it counts for long.
    let grant = |number: u8| {
        let grant = proto::Grant { expires_unix: u64::from(u32::MAX), ..Default::default() };
        Signed { payload: prost::Message::encode_to_vec(&grant), key_id: vec![number], ..Signed::default() }
    };
    for class in [Class::Demand, Class::Prefetch, Class::Background] {
        let content = site.content(false, patient());
        content.renew(&grant(1));
        content.renew_by(Arc::new(move |_| Box::pin(std::future::ready(Ok(grant(2))))));
        site.replicas[0].set(Faults { only: Some(grant(2)), ..Faults::default() });
        check_all_came(&chunks, &fetch(&content, class, &chunks).await);
        assert_eq!(content.grant(), grant(2));
    }
    let content = site.content(false, patient());
    content.renew_by(Arc::new(move |_| Box::pin(std::future::ready(Ok(grant(2))))));
    assert_eq!(content.index(Index::Tree, tree, memory).await.unwrap(), b"a tree");
    // Nobody gives one that counts: it is denied, as ever.
    let content = site.content(false, impatient());
    content.renew_by(Arc::new(move |_| Box::pin(std::future::ready(Ok(grant(3))))));
    let refused = fetch(&content, Class::Background, &chunks[..1]).await;
    assert!(matches!(refused[0].result, Err(FetchError::Denied { ungranted: true, .. })), "{refused:?}");
}

#[tokio::test]
async fn what_no_replica_gives_comes_from_the_store() {
    let site = Site::new(2).await;
    let chunks = chunks(&site, 6).await;
    for replica in &site.replicas {
        replica.set(Faults { corrupt: digests(&chunks), ..Faults::default() });
    }
    check_all_came(&chunks, &fetch(&site.content(true, patient()), Class::Demand, &chunks).await);
    // Each replica was given a second chance first.
    let tries: usize = site.replicas.iter().map(|replica| replica.sent().len()).sum();
    assert_eq!(tries, 6 * 2 * STORE_AFTER_CYCLES as usize);
}

#[tokio::test]
async fn without_replicas_everything_comes_from_the_store() {
    let site = Site::new(0).await;
    let chunks = chunks(&site, 6).await;
    check_all_came(&chunks, &fetch(&site.content(true, patient()), Class::Background, &chunks).await);
}

#[tokio::test]
async fn a_corrupt_chunk_is_never_delivered() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 3).await;
    let wrong = site.project();
    wrong.replace_chunk(chunks[1].digest, Bytes::from_static(b"not zstd")).await.unwrap();
    for class in [Class::Demand, Class::Background] {
        let fetched = fetch(&site.content(true, impatient()), class, &chunks).await;
        let bad = fetched.iter().find(|fetched| fetched.chunk == chunks[1]).unwrap();
        assert_eq!(bad.result.as_ref().unwrap_err(), &FetchError::Corrupt(chunks[1].digest));
        assert_eq!(fetched.iter().filter(|fetched| fetched.result.is_ok()).count(), 2);
    }
}

#[tokio::test]
async fn what_is_nowhere_is_missing_and_comes_once_it_is_back() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 1).await;
    let stored = site.project().chunk(chunks[0].digest).await.unwrap();
    site.project().delete_chunk(chunks[0].digest).await.unwrap();
    let fetched = fetch(&site.content(true, impatient()), Class::Demand, &chunks).await;
    assert_eq!(fetched[0].result.as_ref().unwrap_err(), &FetchError::Missing(chunks[0].digest));
    let content = site.content(true, patient());
    let restored = async {
        // The replica told at least once that it is missing: only then it comes back.
        while site.replicas[0].sent().len() < 4 {
            tokio::task::yield_now().await;
        }
        site.project().put_chunk(chunks[0].digest, stored).await.unwrap();
    };
    let (fetched, ()) = tokio::join!(fetch(&content, Class::Demand, &chunks), restored);
    check_all_came(&chunks, &fetched);
}

#[tokio::test]
async fn a_closed_gate_holds_lower_classes_only() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 2).await;
    let content = site.content(false, patient());
    let (gate, closed) = watch::channel(Class::Demand);
    let (out, mut arrivals) = mpsc::channel(2);
    let background = tokio::spawn({
        let (content, chunk, gate) = (content.clone(), chunks[0], closed.clone());
        async move { content.fetch(Class::Background, vec![chunk], gate, out).await }
    });
    check_all_came(&chunks[1..], &fetch_gated(&content, chunks[1], closed).await);
    assert!(arrivals.try_recv().is_err());
    gate.send(Class::Background).unwrap();
    assert!(arrivals.recv().await.unwrap().result.is_ok());
    background.await.unwrap();
}

async fn fetch_gated(content: &Content, chunk: ChunkRef, gate: Gate) -> Vec<Fetched> {
    let (out, mut arrivals) = mpsc::channel(2);
    content.fetch(Class::Demand, vec![chunk], gate, out).await;
    vec![arrivals.recv().await.unwrap()]
}

#[tokio::test]
async fn trees_and_maps_come_verified_from_wherever_they_are_good() {
    let site = Site::new(2).await;
    let plain = noise([1, 2, 3], 30_000);
    let digest = Digest::of(&plain);
    let stored = Bytes::from(store::verify::seal_index(&plain).unwrap());
    site.project().put_index(Index::Tree, digest, stored.clone()).await.unwrap();
    let index = IndexRef { digest, plain_len: 30_000, stored_len: stored.len() as u64 };
    let content = site.content(true, patient());
    assert_eq!(content.index(Index::Tree, index, memory).await.unwrap(), plain);
    for (one, other) in [(0, 1), (1, 0)] {
        site.replicas[one].set(Faults { corrupt: vec![digest], ..Faults::default() });
        site.replicas[other].set(Faults::default());
        assert_eq!(content.index(Index::Tree, index, memory).await.unwrap(), plain);
    }
    site.replicas
        .iter()
        .for_each(|replica| replica.set(Faults { corrupt: vec![digest], ..Faults::default() }));
    assert_eq!(content.index(Index::Tree, index, memory).await.unwrap(), plain, "from the store");
    let impatient = site.content(false, impatient());
    let refused = impatient.index(Index::Tree, index, memory).await;
    assert!(matches!(refused, Err(IndexError::Fetch(FetchError::Corrupt(_)))));
    site.replicas.iter().for_each(|replica| replica.set(Faults::default()));
    let missing = impatient.index(Index::Map, index, memory).await;
    assert!(matches!(missing, Err(IndexError::Fetch(FetchError::Missing(_)))));
    // A disk that is full is no reason to ask again.
    let full = content.index(Index::Tree, index, || Err::<Vec<u8>, _>(ErrorKind::StorageFull.into())).await;
    assert!(matches!(full, Err(IndexError::Keep(error)) if error.kind() == ErrorKind::StorageFull));
}

fn memory() -> std::io::Result<Vec<u8>> {
    Ok(Vec::new())
}

#[test]
fn the_wait_doubles_up_to_a_bound() {
    let waits: Vec<u128> = (0..8).map(|cycle| backoff(cycle).as_millis()).collect();
    assert_eq!(waits, [0, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
}

/// Refused for want of quota, for a while.
fn short(retry: Duration) -> Faults {
    Faults { short: Some(retry), ..Faults::default() }
}

fn is_short(error: &FetchError) -> bool {
    error.short_for().is_some()
}

#[tokio::test]
async fn a_quota_is_not_got_around_by_asking_others_or_the_store() {
    let site = Site::new(3).await;
    let chunks = chunks(&site, 6).await;
    let tree = Bytes::from(store::verify::seal_index(b"a tree").unwrap());
    let index = IndexRef { digest: Digest::of(b"a tree"), plain_len: 6, stored_len: tree.len() as u64 };
    site.project().put_index(Index::Tree, index.digest, tree).await.unwrap();
    // All but one would give everything: that one is asked by nobody but whose chunks it has first.
    let first = super::endpoints::ranked_urls(&site.urls(), &chunks[0].digest)[0];
    site.replicas[first].set(short(Duration::from_secs(3600)));
    for class in [Class::Demand, Class::Prefetch, Class::Background] {
        let options = Options { quota_patience: Duration::from_millis(300), ..impatient() };
        let fetched = fetch(&site.content(true, options), class, &chunks[..1]).await;
        assert!(is_short(fetched[0].result.as_ref().unwrap_err()), "{class:?}");
    }
    assert!(site.replicas.iter().all(|replica| replica.sent().is_empty()));
    site.replicas.iter().for_each(|replica| replica.set(short(Duration::from_secs(3600))));
    let options = Options { quota_wait: Duration::from_millis(300), ..patient() };
    let refused = site.content(true, options).index(Index::Tree, index, memory).await.unwrap_err();
    assert!(matches!(refused, IndexError::Fetch(error) if is_short(&error)), "a pull has another way");
}

#[tokio::test]
async fn a_read_waits_for_the_quota_and_lower_classes_do_not() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 3).await;
    site.replicas[0].set(short(Duration::from_millis(50)));
    let content = site.content(false, patient());
    let mut shortage = content.shortage();
    let refused = fetch(&content, Class::Background, &chunks).await;
    assert!(refused.iter().all(|fetched| is_short(fetched.result.as_ref().unwrap_err())));
    assert_eq!(site.replicas[0].refused(), 1, "once");
    let read = fetch(&content, Class::Demand, &chunks);
    let raised = async {
        site.replicas[0].refusals(3).await;
        let short = shortage.borrow_and_update().clone().unwrap();
        assert_eq!(short.limit, "content_requests_per_project_region_minute");
        site.replicas[0].set(Faults::default());
    };
    let (fetched, ()) = tokio::join!(read, raised);
    check_all_came(&chunks, &fetched);
    assert!(shortage.borrow().is_none(), "and it is over");
    let told = site.bus.events().recent();
    assert_eq!((told[0].kind(), told[0].reason.as_str()), (proto::EventKind::Quota, "content-quota"));
    assert_eq!(told[0].details["metric"], "content_requests");
}

#[tokio::test]
async fn a_read_that_waits_for_a_quota_is_more_patient_than_others() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 2).await;
    site.replicas[0].set(short(Duration::from_millis(200)));
    let options = Options { demand_patience: Duration::from_millis(250), ..impatient() };
    let content = site.content(false, options);
    let read = fetch(&content, Class::Demand, &chunks);
    let raised = async {
        // Longer than anything else is waited for.
        site.replicas[0].refusals(8).await;
        site.replicas[0].set(Faults::default());
    };
    let (fetched, ()) = tokio::join!(read, raised);
    check_all_came(&chunks, &fetched);
}

#[tokio::test]
async fn the_store_is_asked_past_a_quota_only_where_that_is_allowed_and_only_for_reads() {
    let site = Site::new(1).await;
    let chunks = chunks(&site, 3).await;
    site.replicas[0].set(short(Duration::from_secs(3600)));
    let options = Options { quota_wait: Duration::from_millis(100), quota_bypass: true, ..patient() };
    let refused = fetch(&site.content(true, options), Class::Background, &chunks).await;
    assert!(refused.iter().all(|fetched| is_short(fetched.result.as_ref().unwrap_err())));
    check_all_came(&chunks, &fetch(&site.content(true, options), Class::Demand, &chunks).await);
}
