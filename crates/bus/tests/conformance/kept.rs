//! What is kept for all: leases, counters, tables, on either transport.

use std::time::Duration;

use bus::{Bus, Change, TableChanges, VALUE_MAX};
use futures::StreamExt as _;
use tonic::Code;

use super::{LEASE, SOON};

pub(super) async fn a_lease_has_one_holder(bus: Bus) {
    let held = bus.lease("import sha256:ab", LEASE).await.unwrap().expect("the name is free");
    assert!(bus.lease("import sha256:ab", LEASE).await.unwrap().is_none());
    assert!(!held.lost().is_cancelled());
    held.release().await;
    let again = bus.lease("import sha256:ab", LEASE).await.unwrap().expect("the name is free again");
    assert!(bus.lease("import sha256:ab", LEASE).await.unwrap().is_none());
    again.release().await;
}

pub(super) async fn a_dropped_lease_is_free_again(bus: Bus) {
    drop(bus.lease("name", LEASE).await.unwrap().expect("the name is free"));
    let taken = async {
        while bus.lease("name", LEASE).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, taken).await.expect("the dropped lease is still held");
}

pub(super) async fn leases_of_different_names_are_independent(bus: Bus) {
    let one = bus.lease("a:b", LEASE).await.unwrap();
    let two = bus.lease("a=3ab", LEASE).await.unwrap();
    assert!(one.is_some() && two.is_some());
}

pub(super) const KEPT: Duration = Duration::from_secs(3600);

pub(super) async fn each_addition_is_answered_with_a_sum_of_its_own(bus: Bus) {
    let counters = bus.counters("test", KEPT);
    let adding = (0..16).map(|_| {
        let counters = counters.clone();
        tokio::spawn(async move {
            let mut sums = Vec::new();
            for _ in 0..25 {
                sums.push(counters.add("p/eu:1", 64).await.unwrap());
            }
            sums
        })
    });
    let mut sums: Vec<u64> =
        futures::future::join_all(adding).await.into_iter().flat_map(Result::unwrap).collect();
    sums.sort_unstable();
    assert_eq!(sums, (1..=400).map(|number| number * 64).collect::<Vec<u64>>());
    assert_eq!(counters.get("p/eu:1").await.unwrap(), 400 * 64);
    assert_eq!(bus.counters("test", KEPT).get("p/eu:1").await.unwrap(), 400 * 64, "of all on the bus");
}

pub(super) async fn sums_of_other_keys_and_names_are_others(bus: Bus) {
    let counters = bus.counters("test", KEPT);
    assert_eq!(counters.add("a:b", 1).await.unwrap(), 1);
    assert_eq!(counters.add("a=3ab", 2).await.unwrap(), 2);
    assert_eq!(bus.counters("other", KEPT).add("a:b", 3).await.unwrap(), 3);
    assert_eq!(counters.get("nobody's").await.unwrap(), 0);
    for wrong in [String::new(), "x".repeat(1000)] {
        assert_eq!(counters.add(&wrong, 1).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(counters.get(&wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

pub(super) async fn a_sum_is_forgotten_after_its_time(bus: Bus) {
    let counters = bus.counters("test", Duration::from_secs(1));
    counters.add("key", 5).await.unwrap();
    let forgotten = async {
        while counters.get("key").await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, forgotten).await.expect("it is kept for ever");
    assert_eq!(counters.add("key", 2).await.unwrap(), 2);
}

pub(super) async fn a_table_holds_what_was_written_last(bus: Bus) {
    let table = bus.table("test");
    assert_eq!(table.get("p/*").await.unwrap(), None);
    assert!(table.entries().await.unwrap().is_empty());
    table.delete("p/*").await.unwrap();
    let first = table.put("p/*", "one".into()).await.unwrap();
    let second = table.put("p/*", "two".into()).await.unwrap();
    assert!(0 < first && first < second);
    table.put("a", "three".into()).await.unwrap();
    let entry = bus.table("test").get("p/*").await.unwrap().unwrap();
    assert_eq!((entry.key.as_str(), &entry.value[..], entry.revision), ("p/*", &b"two"[..], second));
    let keys = |entries: Vec<bus::Entry>| entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
    assert_eq!(keys(table.entries().await.unwrap()), ["a", "p/*"]);
    table.delete("a").await.unwrap();
    assert_eq!(table.get("a").await.unwrap(), None);
    assert_eq!(keys(table.entries().await.unwrap()), ["p/*"]);
    assert!(bus.table("other").entries().await.unwrap().is_empty());
    let large = table.put("large", vec![7; VALUE_MAX + 1].into()).await.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument);
    assert_eq!(table.put("", "x".into()).await.unwrap_err().code(), Code::InvalidArgument);
}

pub(super) async fn who_writes_over_what_he_does_not_know_is_refused(bus: Bus) {
    let table = bus.table("test");
    let first = table.update("key", "one".into(), 0).await.unwrap();
    for wrong in [0, first + 100] {
        assert_eq!(table.update("key", "x".into(), wrong).await.unwrap_err().code(), Code::Aborted);
    }
    let second = table.update("key", "two".into(), first).await.unwrap();
    assert_eq!(table.update("key", "x".into(), first).await.unwrap_err().code(), Code::Aborted);
    assert!(second > first);
    table.delete("key").await.unwrap();
    assert_eq!(table.update("key", "x".into(), second).await.unwrap_err().code(), Code::Aborted);
    table.update("key", "three".into(), 0).await.unwrap();
    assert_eq!(table.get("key").await.unwrap().unwrap().value, "three");
}

/// The next change, as text.
pub(super) async fn told(changes: &mut TableChanges) -> String {
    match tokio::time::timeout(SOON, changes.next()).await.expect("nothing is told").unwrap() {
        Change::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
        Change::Deleted(key) => format!("{key} gone"),
        Change::Settled => "settled".to_owned(),
    }
}

pub(super) async fn a_watcher_is_told_what_is_there_and_then_what_changes(bus: Bus) {
    let table = bus.table("test");
    let mut early = table.watch();
    assert_eq!(told(&mut early).await, "settled", "nothing is there");
    table.put("a/b", "1".into()).await.unwrap();
    assert_eq!(told(&mut early).await, "a/b=1");
    table.put("c", "1".into()).await.unwrap();
    assert_eq!(told(&mut early).await, "c=1");
    table.delete("c").await.unwrap();
    assert_eq!(told(&mut early).await, "c gone");

    let mut late = bus.table("test").watch();
    assert_eq!([told(&mut late).await, told(&mut late).await], ["a/b=1", "settled"]);
    table.put("a/b", "2".into()).await.unwrap();
    assert_eq!([told(&mut early).await, told(&mut late).await], ["a/b=2", "a/b=2"]);
}
