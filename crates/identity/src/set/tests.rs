use std::os::unix::fs::PermissionsExt as _;

use super::*;

pub(crate) fn options() -> Options {
    Options {
        name: "test".to_owned(),
        hosts: Vec::new(),
        nats_url: "tls://127.0.0.1:4222".to_owned(),
        listen: "127.0.0.1:4222".to_owned(),
        at: None,
    }
}

fn all_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { all_files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_set_is_its_owners_alone_and_made_once() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("mesh");
    let set = Set::init(&folder, &options()).unwrap();
    for file in all_files(&folder) {
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(Set::init(&folder, &options()).unwrap_err().to_string().contains("already"));
    let names: Vec<String> = set.entries().unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["fetcher", "cache", "policy", "quota", "events", "operator"]);
}

#[test]
fn what_is_rotated_is_another_and_what_is_revoked_is_named() {
    let base = tempfile::tempdir().unwrap();
    let mut set = Set::init(base.path(), &options()).unwrap();
    let read = |name: &str| fs::read_to_string(base.path().join(name)).unwrap();
    let before = [read("services/cache/tls.pem"), read("services/cache/nats.creds")];
    assert_eq!(set.rotate(Some("cache")).unwrap(), ["cache"]);
    let after = [read("services/cache/tls.pem"), read("services/cache/nats.creds")];
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    assert!(set.rotate(Some("nobody")).is_err());
    set.add_node("n1", &["default".to_owned()]).unwrap();
    set.revoke("n1").unwrap();
    assert!(set.revoke("n2").is_err());
    let set = Set::open(base.path()).unwrap();
    let entry = set.entries().unwrap().into_iter().find(|entry| entry.name == "n1").unwrap();
    assert!(entry.revoked_unix.is_some());
    assert_eq!(set.manifest.revoked[0].0, entry.nats_keys[0]);
}

#[test]
fn an_issuer_gives_what_the_set_lists_and_revokes() {
    let base = tempfile::tempdir().unwrap();
    let mut set = Set::init(&base.path().join("mesh"), &options()).unwrap();
    let issuer = Issuer::open(&set.folder().join(AUTHORITY)).unwrap();
    let own = crate::Own::open(&base.path().join("node")).unwrap();
    let given = issuer.give("n1", &["p".to_owned()], own.key(), &own.nats_key()).unwrap();
    own.keep(&given).unwrap();
    let kept = crate::Own::given(&base.path().join("node")).unwrap().unwrap();
    assert_eq!((kept.node.as_str(), kept.expires_unix), ("n1", given.expires_unix));
    assert!(kept.renew_at_unix() < kept.expires_unix && kept.renew_at_unix() > kept.given_unix);
    assert!(!issuer.is_revoked("n1"));
    set.revoke("n1").unwrap();
    assert!(issuer.is_revoked("n1"));
    assert!(set.manifest.revoked.iter().any(|(key, _)| *key == own.nats_key()));
    // Its certificate names it, and counts for dialling with its own key.
    let tls = tls::Config {
        ca_file: Some(base.path().join("node/ca.pem")),
        certificate_file: Some(base.path().join("node/tls.pem")),
        key_file: Some(base.path().join("node/tls.key")),
        insecure: false,
    };
    assert!(tls.open().unwrap().own().unwrap().is_node("p", "n1"));
}
