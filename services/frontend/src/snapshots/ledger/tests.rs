use super::*;

fn snapshot(kind: Kind, parent: Option<&str>) -> Snapshot {
    Snapshot {
        id: 0,
        kind,
        parent: parent.map(str::to_owned),
        labels: BTreeMap::new(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
        streamed: None,
        usage: Usage::default(),
    }
}

fn streamed(parent: Option<&str>, layer: u32, layers: u32) -> Snapshot {
    let streamed = Streamed { manifest: "sha256:m".to_owned(), layer, layers };
    Snapshot { streamed: Some(streamed), ..snapshot(Kind::Committed, parent) }
}

fn ledger(folder: &Path) -> Ledger {
    Ledger::open(&folder.join("snapshots.redb"), 0).unwrap()
}

#[test]
fn follows_the_life_of_a_snapshot_and_finds_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = ledger(folder.path());
    let id = one.new_id();
    one.add("a", Snapshot { id, ..snapshot(Kind::Active, None) }).unwrap();
    assert!(matches!(
        one.add("b", snapshot(Kind::Active, Some("a"))),
        Err(LedgerError::ParentNotCommitted(_))
    ));
    let usage = Usage { bytes: 7, inodes: 2 };
    one.commit("a", "base", BTreeMap::from([("k".to_owned(), "v".to_owned())]), None, usage).unwrap();
    assert!(matches!(one.get("a"), Err(LedgerError::NotFound(_))));
    one.add("b", snapshot(Kind::Active, Some("base"))).unwrap();
    assert!(matches!(one.add("b", snapshot(Kind::View, None)), Err(LedgerError::Exists(_))));
    assert!(matches!(one.commit("base", "c", BTreeMap::new(), None, usage), Err(LedgerError::NotActive(_))));
    assert!(matches!(one.remove("base"), Err(LedgerError::HasChild { .. })));
    one.set_labels("b", BTreeMap::from([("x".to_owned(), "y".to_owned())])).unwrap();
    let before = one.all().clone();
    drop(one);

    let mut again = ledger(folder.path());
    assert_eq!(again.all(), &before);
    assert_eq!((again.get("base").unwrap().usage, again.new_id()), (usage, id + 1));
    again.remove("b").unwrap();
    again.remove("base").unwrap();
    assert!(ledger_after(again, folder.path()).all().is_empty());
}

fn ledger_after(ledger_before: Ledger, folder: &Path) -> Ledger {
    drop(ledger_before);
    ledger(folder)
}

#[test]
fn a_damaged_file_is_put_aside_and_what_it_named_stays_unknown() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 4] = [
        |bytes| bytes.fill(7),
        |bytes| bytes[..64].fill(0),
        |bytes| bytes.truncate(100),
        |bytes| bytes[4096..].fill(0xff),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshots.redb");
        let mut before = ledger(folder.path());
        before.add("a", snapshot(Kind::Active, None)).unwrap();
        assert!(before.is_whole());
        drop(before);
        let mut bytes = std::fs::read(&file).unwrap();
        damage(&mut bytes);
        std::fs::write(&file, &bytes).unwrap();
        let mut after = ledger(folder.path());
        assert!(after.all().is_empty() && !after.is_whole(), "{number}");
        assert_eq!(std::fs::read(folder.path().join("snapshots.redb.damaged")).unwrap(), bytes, "{number}");
        after.add("b", snapshot(Kind::Active, None)).unwrap();
        // Also the next process must not take the folders of running containers for nobody's.
        let next = ledger_after(after, folder.path());
        assert!(next.all().contains_key("b") && !next.is_whole(), "{number}");
    }
}

#[test]
fn a_bad_entry_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = ledger(folder.path());
    one.add("good", snapshot(Kind::Active, None)).unwrap();
    one.table.put_raw("bad", b"{\"id\": \"not a number\"}");
    one.table.put_raw("worse", &[0xff; 40]);
    assert!(one.is_whole());
    let after = ledger_after(one, folder.path());
    assert_eq!(after.all().keys().collect::<Vec<_>>(), ["good"]);
    assert!(!after.is_whole(), "a folder of theirs would be taken for nobody's");
}

#[test]
fn a_folder_that_nobody_names_keeps_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&folder.path().join("l"), 41).unwrap();
    assert_eq!((ledger.new_id(), ledger.new_id()), (41, 42));
}

#[test]
fn claims_what_is_named_and_says_what_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = ledger(folder.path());
    ledger.add("low", streamed(None, 0, 2)).unwrap();
    ledger.add("top", streamed(Some("low"), 1, 2)).unwrap();
    assert!(ledger.get("top").unwrap().streamed.as_ref().unwrap().is_top());
    let claims = |ledger: &Ledger| Vec::from_iter(ledger.claims());
    let named = |whole, part| vec![("low".to_owned(), part), ("sha256:m".to_owned(), whole)];
    assert_eq!(claims(&ledger), named(false, false));
    ledger.add("container", snapshot(Kind::Active, Some("top"))).unwrap();
    assert_eq!(claims(&ledger), named(true, false));
    ledger.add("on the part", snapshot(Kind::View, Some("low"))).unwrap();
    assert_eq!(claims(&ledger), named(true, true));
    assert_eq!(ledger.chain("container").unwrap().len(), 3);
    assert_eq!(ledger.streams_below("on the part").unwrap().map(|(name, _)| name), Some("low".to_owned()));
    for name in ["container", "on the part", "top", "low"] {
        ledger.remove(name).unwrap();
    }
    assert!(ledger.claims().is_empty());
}

#[test]
fn a_loop_in_a_damaged_table_ends() {
    let folder = tempfile::tempdir().unwrap();
    let one = ledger(folder.path());
    for (name, parent) in [("a", "b"), ("b", "a")] {
        one.table.put_raw(name, &serde_json::to_vec(&snapshot(Kind::Committed, Some(parent))).unwrap());
    }
    assert!(matches!(ledger_after(one, folder.path()).chain("a"), Err(LedgerError::NotFound(_))));
}

#[test]
fn layers_are_added_at_once_and_those_that_are_there_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = ledger(folder.path());
    let layers = |upto: u32| -> Vec<(String, Snapshot)> {
        let name = |layer: u32| format!("layer-{layer}");
        let parent = |layer: u32| layer.checked_sub(1).map(name);
        (0..upto).map(|layer| (name(layer), streamed(parent(layer).as_deref(), layer, upto))).collect()
    };
    one.add_layers(layers(2)).unwrap();
    one.add_layers(layers(3)).unwrap();
    let of = |ledger: &Ledger, name: &str| ledger.get(name).unwrap().streamed.clone().unwrap().layers;
    assert_eq!((of(&one, "layer-1"), of(&one, "layer-2")), (2, 3));
    let lost = vec![("lost".to_owned(), streamed(Some("nowhere"), 1, 2))];
    assert!(matches!(one.add_layers(lost), Err(LedgerError::NotFound(_))));
    let before = one.all().clone();
    assert_eq!(ledger_after(one, folder.path()).all(), &before);
}

/// A file system of 3 MiB; taken away at the end of the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> SmallDisk {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("sluice-test", folder.path(), "tmpfs", flags, Some(c"size=3m")).unwrap();
        SmallDisk(folder)
    }

    fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        let full = (0..).find_map(|_| std::io::Write::write_all(&mut filler, &[7; 4096]).err());
        assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    }

    fn filler(&self) -> std::path::PathBuf {
        self.0.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).ok();
    }
}

fn with_label(len: usize) -> Snapshot {
    let labels = BTreeMap::from([("long".to_owned(), "x".repeat(len))]);
    Snapshot { labels, ..snapshot(Kind::Active, None) }
}

/// Adds snapshots until the disk has no room for one more; how many it had room for.
fn add_until_full(ledger: &mut Ledger) -> usize {
    let refused =
        (0..).find_map(|number| Some((number, ledger.add(&format!("{number}"), with_label(20_000)).err()?)));
    let (number, error) = refused.unwrap();
    let status = tonic::Status::from(error);
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
    number
}

#[test]
fn on_a_full_disk_snapshots_can_be_removed_and_then_added_again() {
    let disk = SmallDisk::new();
    let mut before = ledger(disk.0.path());
    before.add("first", snapshot(Kind::Active, None)).unwrap();
    disk.fill();
    let failed = add_until_full(&mut before);
    // Whatever the disk has of what failed: it is not there.
    before.remove("first").unwrap();
    assert_eq!(before.all().len(), failed);
    let all = before.all().clone();
    let mut after = ledger_after(before, disk.0.path());
    assert_eq!(after.all(), &all);
    std::fs::remove_file(disk.filler()).unwrap();
    after.add("last", with_label(1_000_000)).unwrap();
    assert!(ledger_after(after, disk.0.path()).get("last").is_ok());
}

#[test]
fn a_ledger_is_opened_on_a_disk_that_takes_no_write() {
    let disk = SmallDisk::new();
    let mut before = ledger(disk.0.path());
    before.add("a", snapshot(Kind::Active, None)).unwrap();
    // As a kill leaves it, to be repaired.
    let file = disk.0.path().join("snapshots.redb");
    let bytes = std::fs::read(&file).unwrap();
    drop(before);
    std::fs::write(&file, bytes).unwrap();
    let remount = |flags| rustix::mount::mount_remount(disk.0.path(), flags, "").unwrap();
    remount(rustix::mount::MountFlags::RDONLY);
    let mut found = ledger(disk.0.path());
    assert!(found.get("a").is_ok() && found.is_whole());
    let status = tonic::Status::from(found.remove("a").unwrap_err());
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
    assert!(found.get("a").is_ok());
    remount(rustix::mount::MountFlags::empty());
    found.remove("a").unwrap();
    assert!(ledger_after(found, disk.0.path()).all().is_empty());
}

#[test]
fn a_first_ledger_waits_for_a_disk_with_room() {
    let disk = SmallDisk::new();
    disk.fill();
    let mut first = ledger(disk.0.path());
    first.add("a", snapshot(Kind::Active, None)).unwrap_err();
    std::fs::remove_file(disk.filler()).unwrap();
    first.add("a", snapshot(Kind::Active, None)).unwrap();
    let after = ledger_after(first, disk.0.path());
    assert!(after.get("a").is_ok() && after.is_whole());
}
