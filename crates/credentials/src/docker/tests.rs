//! Docker configs as people have them, and helpers that are real processes.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::*;

struct Fixture {
    folder: tempfile::TempDir,
    places: Places,
}

impl Fixture {
    fn new(docker: &Value) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), docker.to_string()).unwrap();
        let helper_path = Some(folder.path().display().to_string());
        let places = Places { config: Some(folder.path().into()), helper_path };
        Fixture { folder, places }
    }

    fn helper(self, name: &str, script: &str) -> Fixture {
        let path = self.folder.path().join(format!("docker-credential-{name}"));
        // Written elsewhere and moved: a script that is still open for writing cannot be run.
        let draft = self.folder.path().join("draft");
        std::fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(draft, path).unwrap();
        self
    }

    async fn look_up(&self, host: &str) -> anyhow::Result<Option<Credential>> {
        look_up(&self.places, host).await
    }
}

fn basic(username: &str, password: &str) -> Option<Credential> {
    Some(Credential::Basic { username: username.into(), password: password.into() })
}

#[tokio::test]
async fn reads_every_form_of_auths() {
    let fixture = Fixture::new(&json!({ "auths": {
        "https://index.docker.io/v1/": { "auth": "dXNlcjpwYTpzcw==" },
        "plain.example:5000": { "username": "user", "password": "pass" },
        "https://old.example/v2/": { "auth": "dXNlcjpwYXNzAAA=" },
        "token.example": { "auth": "dXNlcjo=", "identitytoken": "refresh" },
        "empty.example": {},
    }}));
    assert_eq!(fixture.look_up("docker.io").await.unwrap(), basic("user", "pa:ss"));
    assert_eq!(fixture.look_up("plain.example:5000").await.unwrap(), basic("user", "pass"));
    assert_eq!(fixture.look_up("old.example").await.unwrap(), basic("user", "pass"));
    assert_eq!(
        fixture.look_up("token.example").await.unwrap(),
        Some(Credential::IdentityToken("refresh".into()))
    );
    for host in ["empty.example", "plain.example", "other.example"] {
        assert_eq!(fixture.look_up(host).await.unwrap(), None, "{host}");
    }
}

#[tokio::test]
async fn asks_the_helper_of_the_host_and_then_the_store() {
    let fixture = Fixture::new(&json!({
        "credHelpers": { "cloud.example": "cloud" },
        "credsStore": "store",
    }))
    .helper("cloud", r#"read -r host; echo "{\"Username\":\"<token>\",\"Secret\":\"for $host\"}""#)
    .helper(
        "store",
        r#"read -r host
           if [ "$host" = kept.example ]; then echo '{"ServerURL":"x","Username":"u","Secret":"p"}'; exit; fi
           echo "credentials not found in native keychain"; exit 1"#,
    );
    assert_eq!(
        fixture.look_up("cloud.example").await.unwrap(),
        Some(Credential::IdentityToken("for cloud.example".into()))
    );
    assert_eq!(fixture.look_up("kept.example").await.unwrap(), basic("u", "p"));
    assert_eq!(fixture.look_up("docker.io").await.unwrap(), None);
}

#[tokio::test]
async fn says_what_is_wrong_without_telling_the_secret() {
    let fixture = Fixture::new(&json!({
        "auths": { "broken.example": { "auth": "c2VjcmV0" } },
        "credHelpers": { "a.example": "absent", "b.example": "broken", "c.example": "mute", "d.example": "../x" },
    }))
    .helper("broken", "echo no network >&2; exit 3")
    .helper("mute", r#"echo '{"secret": "c2VjcmV0"'"#);
    for (host, expected) in [
        ("broken.example", "base64"),
        ("a.example", "docker-credential-absent is not installed"),
        ("b.example", "no network"),
        ("c.example", "not understood"),
        ("d.example", "not a credential helper's name"),
    ] {
        let error = format!("{:#}", fixture.look_up(host).await.unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("c2VjcmV0") && !error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn no_config_is_no_credential() {
    let places = Places { config: Some("/nonexistent/config.json".into()), helper_path: None };
    assert_eq!(look_up(&places, "docker.io").await.unwrap(), None);
}
