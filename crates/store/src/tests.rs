//! The store against a real folder, and against servers that speak the buckets' protocols.

use std::collections::HashMap;

use bytes::Bytes;
use futures::TryStreamExt;
use image::Digest;
use tempfile::TempDir;
use testkit::Bucket;

use crate::{Config, Index, Kind, Put, Store, StoreError};

fn folder() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/when/absent");
    let store = Store::open(path.to_str().unwrap(), &HashMap::new()).unwrap();
    (folder, store)
}

fn named(seed: u8) -> String {
    format!("sha256:{}", format!("{seed:02x}").repeat(32))
}

async fn on_bucket(bucket: Bucket) {
    let options: HashMap<_, _> = bucket.options().iter().cloned().collect();
    let store = Store::open(bucket.url(), &options).unwrap();
    written_once(&store).await;
    listed_and_deleted(&store).await;
    let digest = Digest::of(b"many");
    let puts = (0..8_u8).map(|writer| {
        let project = store.project("many").unwrap();
        async move { project.put_chunk(digest, Bytes::from(vec![writer; 100_000])).await.unwrap() }
    });
    let puts = futures::future::join_all(puts).await;
    assert_eq!(puts.iter().filter(|put| **put == Put::Written).count(), 1, "{puts:?}");
}

#[tokio::test]
async fn a_bucket_of_s3_is_a_store() {
    on_bucket(Bucket::s3().unwrap()).await;
}

#[tokio::test]
async fn a_container_of_azure_is_a_store() {
    on_bucket(Bucket::azure().unwrap()).await;
}

#[tokio::test]
async fn a_chunk_is_written_once_and_replaced_when_asked() {
    let (folder, store) = folder();
    written_once(&store).await;
    let digest = Digest::of(b"kept");
    store.project("").unwrap().put_chunk(digest, Bytes::from_static(b"kept")).await.unwrap();
    let file = folder.path().join("made/when/absent/default/chunks").join(digest.path());
    assert_eq!(std::fs::read(file).unwrap(), b"kept");
}

async fn written_once(store: &Store) {
    let project = store.project("").unwrap();
    let digest = Digest::of(b"one");
    assert!(project.chunk(digest).await.unwrap_err().is_not_found());
    assert_eq!(project.put_chunk(digest, Bytes::from_static(b"one")).await.unwrap(), Put::Written);
    assert_eq!(project.put_chunk(digest, Bytes::from_static(b"two")).await.unwrap(), Put::Present);
    assert_eq!(project.chunk(digest).await.unwrap(), "one");
    assert_eq!(project.chunk_len(digest).await.unwrap(), Some(3));
    project.replace_chunk(digest, Bytes::from_static(b"three")).await.unwrap();
    assert_eq!(project.chunk(digest).await.unwrap(), "three");
    project.delete_chunk(digest).await.unwrap();
    project.delete_chunk(digest).await.unwrap();
    assert!(!project.has_chunk(digest).await.unwrap());
}

#[tokio::test]
async fn projects_do_not_see_each_other() {
    let (_folder, store) = folder();
    let (one, two) = (store.project("one").unwrap(), store.project("two").unwrap());
    one.put_image(&named(1), Bytes::from_static(b"record")).await.unwrap();
    assert_eq!(one.images().await.unwrap(), [named(1)]);
    assert!(two.images().await.unwrap().is_empty());
    assert!(two.image(&named(1)).await.unwrap_err().is_not_found());
    for wrong in ["../one", "a/b", "A", ".", "-", &"x".repeat(64)] {
        assert!(matches!(store.project(wrong), Err(StoreError::BadName { .. })), "{wrong}");
    }
    for wrong in ["", "sha256:", "sha256:../../one", "sha512:00", &named(1).to_uppercase()] {
        assert!(matches!(one.image(wrong).await, Err(StoreError::BadName { .. })), "{wrong}");
    }
}

#[tokio::test]
async fn lists_and_deletes_each_kind() {
    let (folder, store) = folder();
    std::fs::create_dir_all(folder.path().join("made/when/absent/p/images")).unwrap();
    std::fs::write(folder.path().join("made/when/absent/p/images/stray"), b"not ours").unwrap();
    listed_and_deleted(&store).await;
}

async fn listed_and_deleted(store: &Store) {
    let project = store.project("p").unwrap();
    let content = Bytes::from_static(b"content");
    project.put_chunk(Digest::of(b"1"), content.clone()).await.unwrap();
    project.put_index(Index::Tree, Digest::of(b"2"), content.clone()).await.unwrap();
    project.put_index(Index::Map, Digest::of(b"3"), content.clone()).await.unwrap();
    project.put_layer(&named(1), content.clone()).await.unwrap();
    project.put_image(&named(2), content.clone()).await.unwrap();
    project.put_source(&named(3), content.clone()).await.unwrap();
    project.put_profile(&named(4), content.clone()).await.unwrap();
    project.put_repository(named(5).trim_start_matches("sha256:"), content.clone()).await.unwrap();
    project.put_removed(&named(6), content.clone()).await.unwrap();
    project.put_attempts(&named(7), content.clone()).await.unwrap();
    for kind in Kind::ALL {
        let found: Vec<_> = project.list(kind).try_collect().await.unwrap();
        assert_eq!(found.len(), 1, "{kind:?}");
        assert_eq!((found[0].kind, found[0].size), (kind, 7));
        project.delete(found[0].kind, &found[0].hex).await.unwrap();
        assert!(project.list(kind).try_collect::<Vec<_>>().await.unwrap().is_empty(), "{kind:?}");
    }
}

#[tokio::test]
async fn markers_come_and_go() {
    let (_folder, store) = folder();
    let project = store.project("p").unwrap();
    let hex = "ab".repeat(32);
    project.put_marker(Kind::Importing, &hex).await.unwrap();
    let found: Vec<_> = project.list(Kind::Importing).try_collect().await.unwrap();
    assert_eq!((found.len(), found[0].hex.as_str()), (1, hex.as_str()));
    project.delete_marker(Kind::Importing, &hex).await.unwrap();
    assert!(project.list(Kind::Importing).try_collect::<Vec<_>>().await.unwrap().is_empty());
    assert!(project.put_marker(Kind::Importing, "../escape").await.is_err());
}

#[tokio::test]
async fn errors_say_what_happened_to_what() {
    let missing = Store::open("/sys/no-store-here", &HashMap::new()).unwrap_err();
    assert!(matches!(missing, StoreError::Denied { .. }), "{missing}");
    for wrong in ["", "://", "ftp://host/path", "s3://"] {
        assert!(Store::open(wrong, &HashMap::new()).is_err(), "{wrong}");
    }
    let (_folder, store) = folder();
    let error = store.project("p").unwrap().image(&named(7)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("read image record p/images/{}: not in the store", "07".repeat(32))
    );
}

#[tokio::test]
async fn a_folder_that_is_gone_is_told_and_none_is_made_for_a_question() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let config = Config { url: path.display().to_string(), ..Config::default() };
    assert!(config.open_existing().unwrap_err().is_not_found() && !path.exists());
    let store = config.open().unwrap();
    store.check().await.unwrap();
    config.open_existing().unwrap();
    std::fs::remove_dir(&path).unwrap();
    assert!(store.check().await.unwrap_err().is_not_found());
    std::fs::create_dir(&path).unwrap();
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_bucket_is_asked_whether_it_is_there() {
    let bucket = Bucket::s3().unwrap();
    let options: HashMap<String, String> = bucket.options().iter().cloned().collect();
    let store = Store::open(bucket.url(), &options).unwrap();
    // Listed the first time, asked for what is not there from then on.
    for _ in 0..2 {
        store.check().await.unwrap();
    }
    let error = Store::open("s3://another/sluice", &options).unwrap().check().await.unwrap_err();
    assert!(error.to_string().contains("look at store s3://another/sluice"), "{error}");
}

#[tokio::test]
async fn a_projects_name_leads_nowhere_else() {
    let (_folder, store) = folder();
    for name in [
        "..",
        ".",
        "../a",
        "a/../b",
        "a/b",
        "/a",
        "a\\b",
        "A",
        "Default",
        "-a",
        "_a",
        ".a",
        "a b",
        "a%2fb",
        "a+b",
        "a\0",
        "\u{e9}",
        "\u{ff41}",
        "a\u{2215}b",
        &"a".repeat(64),
    ] {
        let refused = store.project(name).unwrap_err();
        assert!(matches!(refused, StoreError::BadName { what: "project", .. }), "{name:?}: {refused}");
    }
    // One name begins as the other does, and one has dots in it.
    let projects = ["a", "ab", "a..", "a.b"].map(|name| store.project(name).unwrap());
    let digest = Digest::of(b"one");
    projects[1].put_chunk(digest, Bytes::from_static(b"one")).await.unwrap();
    for other in [&projects[0], &projects[2], &projects[3]] {
        assert!(!other.has_chunk(digest).await.unwrap(), "{}", other.name());
        assert!(other.list_all(Kind::Chunk).try_collect::<Vec<_>>().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn where_a_project_stands_is_told_by_the_layouts_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let digest = Digest::of(b"one");
    let url = path("store").display().to_string();
    let plain = Config { url: url.clone(), ..Config::default() };
    plain.open().unwrap().project("").unwrap().put_chunk(digest, Bytes::from_static(b"old")).await.unwrap();

    std::fs::write(path("key"), [7; 32]).unwrap();
    std::fs::write(path("other"), [8; 32]).unwrap();
    let keyed = |key: &str| Config {
        url: url.clone(),
        layout_key_file: Some(path(key)),
        plain_projects: vec!["default".to_owned()],
        ..Config::default()
    };
    let store = keyed("key").open().unwrap();
    assert_eq!(store.project("").unwrap().chunk(digest).await.unwrap(), "old", "of before the key");
    for name in ["one", "two"] {
        store.project(name).unwrap().put_chunk(digest, Bytes::from(name)).await.unwrap();
    }
    assert_eq!(keyed("key").open().unwrap().project("one").unwrap().chunk(digest).await.unwrap(), "one");
    for guess in [plain.open().unwrap(), keyed("other").open().unwrap()] {
        assert!(guess.project("one").unwrap().chunk(digest).await.unwrap_err().is_not_found());
    }
    let names: Vec<String> = std::fs::read_dir(path("store"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let suffix = |project: &str| {
        let name = names.iter().find_map(|name| name.strip_prefix(project)?.strip_prefix('+'));
        name.unwrap().to_owned()
    };
    assert!(names.len() == 3 && suffix("one").len() == 32 && suffix("one") != suffix("two"), "{names:?}");
    let listed = store.project("one").unwrap().list(Kind::Chunk).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(listed.len(), 1);

    std::fs::write(path("key"), [7; 31]).unwrap();
    assert!(keyed("key").open().unwrap_err().to_string().contains("31 bytes"));
    assert!(keyed("absent").open().is_err(), "nobody makes a key");
}
