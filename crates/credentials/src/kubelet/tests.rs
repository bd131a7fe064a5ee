//! Plugins that are real processes.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

const IMAGE: &str = "registry.example/team/app:1";

fn config(name: &str, more: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: {name}\n  \
         matchImages: [\"*.example\"]\n  defaultCacheDuration: 10m0s\n  apiVersion: {SPOKEN}\n{more}"
    )
}

/// A plugin that counts how often it is asked.
fn plugin(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    // Written elsewhere and moved: a script that is still open for writing cannot be run.
    let (draft, counter) = (folder.path().join("draft"), folder.path().join("asked"));
    let script = format!("#!/bin/sh\necho >> {}\n{script}\n", counter.display());
    std::fs::write(&draft, script).unwrap();
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(draft, folder.path().join("plugin")).unwrap();
    folder
}

fn asked(folder: &tempfile::TempDir) -> usize {
    std::fs::read_to_string(folder.path().join("asked")).unwrap_or_default().lines().count()
}

fn answer(covers: &str, auth: &str) -> String {
    format!(
        r#"echo '{{"kind":"CredentialProviderResponse","apiVersion":"{SPOKEN}","cacheKeyType":"{covers}","auth":{auth}}}'"#
    )
}

fn basic(password: &str) -> Option<Credential> {
    Some(Credential::Basic { username: "user".to_owned(), password: password.to_owned() })
}

#[tokio::test]
async fn a_plugin_is_asked_once_for_what_its_answer_covers() {
    let auth = r#"{"*.example":{"username":"user","password":"all"},"registry.example/team":{"username":"user","password":"team"}}"#;
    let folder = plugin(&answer("Registry", auth));
    let plugins = Plugins::parse(&config("plugin", ""), folder.path().into()).unwrap();
    assert_eq!(plugins.look_up(IMAGE).await, basic("team"));
    assert_eq!(plugins.look_up("registry.example/other/app").await, basic("all"));
    assert_eq!(asked(&folder), 1);
    assert_eq!(plugins.look_up("second.example/app").await, basic("all"));
    assert_eq!(asked(&folder), 2);
    assert_eq!(plugins.look_up("registry.elsewhere/app").await, None);
    assert_eq!(asked(&folder), 2);
    assert!(!format!("{plugins:?}").contains("team\""), "{plugins:?}");
}

#[tokio::test]
async fn it_hears_the_image_and_has_its_arguments_and_variables() {
    let script = format!(
        r#"image=$(sed 's/.*"image":"\([^"]*\)".*/\1/'); {}"#,
        answer("Image", r#"{"registry.example":{"username":"user","password":"'"$1 $WORD $image"'"}}"#)
    );
    let folder = plugin(&script);
    let more = "  args: [say]\n  env:\n  - name: WORD\n    value: it\n";
    let plugins = Plugins::parse(&config("plugin", more), folder.path().into()).unwrap();
    assert_eq!(plugins.look_up(IMAGE).await, basic(&format!("say it {IMAGE}")));
}

#[tokio::test]
async fn one_that_fails_or_talks_nonsense_gives_nothing() {
    for script in ["echo no network >&2; exit 1", "echo nonsense", r#"echo '{"apiVersion":"v0"}'"#] {
        let folder = plugin(script);
        let plugins = Plugins::parse(&config("plugin", ""), folder.path().into()).unwrap();
        assert_eq!(plugins.look_up(IMAGE).await, None, "{script}");
    }
    let absent = Plugins::parse(&config("plugin", ""), "/nonexistent".into()).unwrap();
    assert_eq!(absent.look_up(IMAGE).await, None);
}

#[tokio::test]
async fn one_that_needs_a_pods_token_is_passed_over() {
    let folder = plugin(&answer("Global", r#"{"*.example":{"username":"user","password":"p"}}"#));
    let more = "  tokenAttributes:\n    serviceAccountTokenAudience: x\n    requireServiceAccount: true\n";
    let plugins = Plugins::parse(&config("plugin", more), folder.path().into()).unwrap();
    assert_eq!(plugins.look_up(IMAGE).await, None);
    assert_eq!(asked(&folder), 0);
}

#[test]
fn a_wrong_configuration_is_refused_with_its_reason() {
    let parse = |text: &str| format!("{:#}", Plugins::parse(text, PathBuf::new()).unwrap_err());
    assert!(parse("kind: Other\nproviders: []").contains("Other"));
    assert!(parse(&config("../plugin", "")).contains("../plugin"));
    assert!(parse(&config("plugin", "").replace("/v1\n", "/v9\n")).contains("v9"));
    assert!(parse(&config("plugin", "").replace("10m0s", "soon")).contains("soon"));
    assert!(parse("providers: [").contains("CredentialProviderConfig"));
}
