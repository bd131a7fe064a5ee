use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytesize::ByteSize;

use super::*;
use crate::config::Disk;

fn name(project: &str, content: &[u8]) -> Name {
    Name { project: project.into(), kind: Kind::Chunk, digest: Digest::of(content) }
}

fn encoded(value: &impl Code) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes).unwrap();
    bytes
}

fn on_disk(folder: &Path) -> Config {
    let disk = Some(Disk { path: folder.to_owned(), capacity: ByteSize::mib(256) });
    Config { memory: ByteSize::mib(32), disk, ..Config::default() }
}

#[test]
fn a_name_is_read_as_it_was_written() {
    for kind in [Kind::Chunk, Kind::Index(Index::Tree), Kind::Index(Index::Map)] {
        let name = Name { kind, ..name("project", b"content") };
        let bytes = encoded(&name);
        assert_eq!(bytes.len(), name.estimated_size());
        assert_eq!(Name::decode(&mut bytes.as_slice()).unwrap(), name);
        assert!(Name::decode(&mut &bytes[..bytes.len() - 1]).is_err());
    }
    assert!(Name::decode(&mut [9; 64].as_slice()).is_err());
}

#[test]
fn an_entry_with_any_changed_byte_is_refused() {
    let stored = Bytes::from_static(b"stored bytes");
    let kept = Kept { digest: Digest::of(b"plain"), stored };
    let bytes = encoded(&kept);
    assert_eq!(bytes.len(), kept.estimated_size());
    assert_eq!(Kept::decode(&mut bytes.as_slice()).unwrap().stored, kept.stored);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Kept::decode(&mut changed.as_slice()).is_err(), "byte {at}");
    }
}

#[tokio::test]
async fn what_is_kept_is_found_by_project_and_kind() {
    let tiers = Tiers::open(&Config::default()).await.unwrap();
    let chunk = name("p", b"content");
    tiers.keep(&chunk, Bytes::from_static(b"stored"));
    assert_eq!(tiers.memory(&chunk).unwrap(), "stored");
    assert!(tiers.memory(&name("q", b"content")).is_none());
    assert!(tiers.memory(&Name { kind: Kind::Index(Index::Tree), ..chunk }).is_none());
}

#[tokio::test]
async fn memory_stays_within_its_budget() {
    let config = Config { memory: ByteSize::mib(32), ..Config::default() };
    let tiers = Tiers::open(&config).await.unwrap();
    let names: Vec<Name> = (0..64_u8).map(|number| name("p", &[number])).collect();
    for name in &names {
        tiers.keep(name, vec![0; 1 << 20].into());
    }
    let held = names.iter().filter(|name| tiers.memory(name).is_some()).count();
    assert!((8..32).contains(&held), "{held} MiB of 32 are held");
}

#[tokio::test]
async fn an_index_that_would_fill_memory_is_not_kept() {
    let config = Config { memory: ByteSize::mib(32), ..Config::default() };
    let tiers = Tiers::open(&config).await.unwrap();
    let index = |content| Name { kind: Kind::Index(Index::Map), ..name("p", content) };
    tiers.keep(&index(b"small"), vec![0; 1 << 10].into());
    tiers.keep(&index(b"large"), vec![0; 5 << 20].into());
    assert!(tiers.memory(&index(b"small")).is_some());
    assert!(tiers.memory(&index(b"large")).is_none());
}

#[tokio::test]
async fn the_disk_keeps_chunks_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let chunk = name("p", b"content");
    let index = Name { kind: Kind::Index(Index::Map), ..chunk.clone() };
    let first = Tiers::open(&on_disk(folder.path())).await.unwrap();
    first.keep(&chunk, Bytes::from_static(b"stored"));
    first.keep(&index, Bytes::from_static(b"index"));
    first.close().await;
    drop(first);

    let second = Tiers::open(&on_disk(folder.path())).await.unwrap();
    assert!(second.memory(&chunk).is_none());
    assert_eq!(second.get(&chunk).await, Some((Bytes::from_static(b"stored"), Tier::Disk)));
    assert_eq!(second.get(&chunk).await, Some((Bytes::from_static(b"stored"), Tier::Memory)));
    assert_eq!(second.get(&index).await, None);
}

/// Every file of the disk tier is overwritten, in its content only.
#[tokio::test]
async fn a_spoilt_disk_has_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stored: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let chunk = name("p", b"content");
    let first = Tiers::open(&on_disk(folder.path())).await.unwrap();
    first.keep(&chunk, stored.clone().into());
    first.close().await;
    drop(first);

    let needle = &stored[200_000..200_064];
    let mut spoilt = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.metadata().unwrap().blocks() == 0 {
            // Nothing was written to it yet.
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            spoilt += 1;
        }
    }
    assert_eq!(spoilt, 1, "the chunk stands on the disk");

    let second = Tiers::open(&on_disk(folder.path())).await.unwrap();
    assert_eq!(second.get(&chunk).await, None);
}
