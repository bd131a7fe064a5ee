use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    name: String,
    trusted_keys: Vec<String>,
    cache: Cache,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Cache {
    memory: u64,
    disk: Option<PathBuf>,
    #[serde(with = "humantime_serde")]
    patience: Duration,
    options: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Settings {
        let cache = Cache { memory: 5, ..Cache::default() };
        Settings { name: "default".to_owned(), trusted_keys: Vec::new(), cache }
    }
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { memory: 0, disk: None, patience: Duration::from_secs(1), options: BTreeMap::new() }
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn load_settings(variables: &[(&str, &str)], flags: &[(&str, &str)]) -> anyhow::Result<Settings> {
    load_from(&[], pairs(variables), pairs(flags))
}

#[test]
fn the_later_layer_wins_key_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        file(folder.path(), "one.toml", "name = 'one'\n[cache]\ndisk = '/one'\npatience = '2s'\n"),
        file(folder.path(), "two.toml", "[cache]\ndisk = '/two'\n"),
    ];
    let settings: Settings = load_from(
        &files,
        pairs(&[("SLUICE__CACHE__PATIENCE", "3s"), ("SLUICE_CACHE", "not ours"), ("PATH", "/bin")]),
        pairs(&[("name", "flag")]),
    )
    .unwrap();
    let cache = Cache {
        memory: 5,
        disk: Some("/two".into()),
        patience: Duration::from_secs(3),
        options: BTreeMap::new(),
    };
    assert_eq!(settings, Settings { name: "flag".to_owned(), trusted_keys: Vec::new(), cache });
}

#[test]
fn values_in_variables_are_text_unless_they_begin_like_toml() {
    let settings = load_settings(
        &[
            ("SLUICE__CACHE__MEMORY", "17"),
            ("SLUICE__NAME", "1e10"),
            ("SLUICE__TRUSTED_KEYS", "['ab', 'cd']"),
            ("SLUICE__CACHE__OPTIONS__AWS_REGION", "eu"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!((settings.cache.memory, settings.name.as_str()), (17, "1e10"));
    assert_eq!(settings.trusted_keys, ["ab", "cd"]);
    assert_eq!(settings.cache.options["aws_region"], "eu");
}

#[test]
fn errors_name_the_key_and_where_it_stands() {
    let error = |variables: &[_], flags: &[_]| format!("{:#}", load_settings(variables, flags).unwrap_err());
    let unknown = error(&[("SLUICE__CACHE__MEMROY", "1")], &[]);
    assert!(unknown.contains("memroy") && unknown.contains("cache"), "{unknown}");
    let wrong = error(&[], &[("cache.memory", "much")]);
    assert!(wrong.contains("cache.memory") && wrong.contains("much"), "{wrong}");
    let broken = error(&[("SLUICE__TRUSTED_KEYS", "[1,")], &[]);
    assert!(broken.contains("SLUICE__TRUSTED_KEYS"), "{broken}");

    let folder = tempfile::tempdir().unwrap();
    let absent = load_from::<Settings>(&[folder.path().join("absent.toml")], Vec::new(), Vec::new());
    assert!(format!("{:#}", absent.unwrap_err()).contains("absent.toml"));
    let broken = file(folder.path(), "broken.toml", "name = \n");
    let broken = load_from::<Settings>(&[broken], Vec::new(), Vec::new());
    assert!(format!("{:#}", broken.unwrap_err()).contains("broken.toml"));
}

#[test]
fn shows_everything_but_secrets() {
    let mut settings = Settings { trusted_keys: vec!["ab".to_owned()], ..Settings::default() };
    let options = pairs(&[
        ("aws_secret_access_key", "hidden1"),
        ("aws_access_key_id", "AKIA"),
        ("signing_key_file", "/etc/key"),
        ("endpoint", "https://user:hidden2@host/path?sig=hidden3"),
        ("registry", "https://host:5000/a@b"),
    ]);
    settings.cache.options = options.into_iter().collect();
    let shown = show(&settings).unwrap();
    assert!(!shown.contains("hidden"), "{shown}");
    for part in ["AKIA", "/etc/key", "\"ab\"", "https://(secret)@host/path?(secret)", "https://host:5000/a@b"]
    {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn what_is_shown_can_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let shown = file(folder.path(), "shown.toml", &show(&settings).unwrap());
    assert_eq!(load_from::<Settings>(&[shown], Vec::new(), Vec::new()).unwrap(), settings);
}
