//! Policies from a real registry: pushed, pulled, kept, replaced, and everything that may be wrong with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use policy::{Access, Config, PolicyConfig, Registries, RemoteName, SetConfig, SigningKey, TrustConfig};
use proto::Decision;
use registry::document::OCI_MANIFEST;
use registry::{BlobDigest, Client, Repository};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::Registry;

use crate::harness::{Harness, built, image};
use crate::sets::until;

/// Refuses images of the tag `latest`; the other one does not.
pub(crate) const NO_LATEST: &str = "tests/no-latest.wasm";
pub(crate) const OTHER: &str = "schema-version.wasm";

/// A registry, and who pushes to it.
pub(crate) struct Author {
    pub(crate) registry: Registry,
    pub(crate) folder: TempDir,
}

impl Author {
    pub(crate) fn new() -> Author {
        Author { registry: Registry::start().unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    /// A service that pulls here and believes these keys; without policies so far.
    pub(crate) fn config(&self, keys: &[&SigningKey]) -> Config {
        let retry = registry::RetryConfig {
            attempts: 2,
            first_pause: Duration::from_millis(1),
            ..registry::RetryConfig::default()
        };
        let reached = registry::Config {
            plain_http: vec![self.registry.host()],
            docker_config: Some("/nonexistent".into()),
            retry,
            ..registry::Config::default()
        };
        let public_keys = keys.iter().map(|key| key.public_pem().unwrap()).collect();
        Config {
            registry: reached,
            trust: TrustConfig { public_keys, ..TrustConfig::default() },
            kept: self.kept(),
            ..crate::harness::config("")
        }
    }

    pub(crate) fn kept(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    pub(crate) fn name(&self, name: &str) -> RemoteName {
        format!("oci://{}/{name}", self.registry.host()).parse().unwrap()
    }

    pub(crate) async fn push(&self, plugin: &str, name: &str) -> RemoteName {
        let bytes = Bytes::from(std::fs::read(built(plugin)).unwrap());
        let config = self.config(&[]);
        let outline = policy::outline(&bytes, config.limits.clone()).unwrap();
        let registries = Registries::new(&config).unwrap();
        registries.push(bytes, "a.wasm", &outline, &self.name(name), Access::default()).await.unwrap()
    }

    pub(crate) async fn sign(&self, name: &RemoteName, key: &SigningKey) -> bool {
        let registries = Registries::new(&self.config(&[])).unwrap();
        registries.sign(name, key, Access::default()).await.unwrap()
    }

    pub(crate) fn repository(&self, name: &str) -> Repository {
        let reference = names::Reference::parse(&format!("{}/{name}", self.registry.host())).unwrap();
        let client = Client::new(self.config(&[]).registry).unwrap();
        client.repository(&reference, Access::default()).unwrap()
    }

    /// Pushes a plugin whose manifest somebody changed.
    async fn push_changed(&self, change: impl FnOnce(&mut Value)) -> RemoteName {
        let pushed = self.push(OTHER, "changed").await;
        let repository = self.repository("changed");
        let (_, manifest) = repository.root("it", OCI_MANIFEST).await.unwrap();
        let mut manifest = serde_json::from_slice(&manifest).unwrap();
        change(&mut manifest);
        let digest =
            repository.put_manifest("changed", OCI_MANIFEST, manifest.to_string().into()).await.unwrap();
        let text = pushed.to_string();
        format!("{}@{digest}", text.split('@').next().unwrap()).parse().unwrap()
    }
}

/// With this one policy.
pub(crate) fn using(config: Config, source: &RemoteName) -> Config {
    let policy = PolicyConfig { source: source.to_string(), ..PolicyConfig::builtin("mine") };
    let set = SetConfig { eligibility: vec![policy], prefetch: Vec::new(), ..SetConfig::default() };
    Config { set, ..config }
}

/// Why it is not loaded.
pub(crate) async fn refused(config: Config, source: &RemoteName) -> String {
    format!("{:#}", Harness::start(using(config, source)).await.err().expect("it was loaded"))
}

pub(crate) async fn says_of_latest(harness: &Harness) -> Decision {
    harness.judge(image(|image| image.tag = Some("latest".to_owned()))).await.decision()
}

fn write_set(file: &Path, source: &RemoteName) {
    let set = format!("prefetch = []\n[[eligibility]]\nname = 'mine'\nsource = '{source}'");
    std::fs::write(file, set).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_pushed_signed_loaded_replaced_and_rolled_back_without_a_restart() {
    let (mut author, key) = (Author::new(), SigningKey::generate().unwrap());
    let first = author.push(OTHER, "policy:1").await;
    let second = author.push(NO_LATEST, "policy:2").await;
    assert_eq!(author.push(OTHER, "policy:1").await, first, "the same plugin has the same digest");
    assert!(author.sign(&first, &key).await && !author.sign(&first, &key).await, "once is enough");

    let file = author.folder.path().join("policies.toml");
    write_set(&file, &first);
    let config = Config { file: Some(file.clone()), ..author.config(&[&key]) };
    let harness = Harness::start(config.clone()).await.unwrap();
    assert_eq!(says_of_latest(&harness).await, Decision::Accept);
    let loaded = harness.policies().await.policies.remove(0);
    assert_eq!(loaded.source, first.to_string());
    assert_eq!(loaded.digest, BlobDigest::of(&std::fs::read(built(OTHER)).unwrap()).to_string());

    write_set(&file, &second);
    let reply = until(&harness, |reply| reply.last_error.contains("it is not signed")).await;
    assert_eq!((reply.generation, says_of_latest(&harness).await), (1, Decision::Accept));

    author.sign(&second, &key).await;
    until(&harness, |reply| reply.generation == 2 && reply.last_error.is_empty()).await;
    assert_eq!(says_of_latest(&harness).await, Decision::Refuse);

    // What was pulled once needs no registry, neither to go back to it nor after a restart.
    author.registry.kill().unwrap();
    write_set(&file, &first);
    until(&harness, |reply| reply.generation == 3).await;
    assert_eq!(says_of_latest(&harness).await, Decision::Accept);
    let restarted = Harness::start(config).await.unwrap();
    assert_eq!(says_of_latest(&restarted).await, Decision::Accept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_replaced_counts_from_the_next_plugin_on() {
    let author = Author::new();
    let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let (first, second) = (author.push(OTHER, "policy:1").await, author.push(NO_LATEST, "policy:2").await);
    author.sign(&first, &old).await;
    author.sign(&second, &new).await;
    let (file, key) = (author.folder.path().join("policies.toml"), author.folder.path().join("key.pub"));
    std::fs::write(&key, old.public_pem().unwrap()).unwrap();
    write_set(&file, &first);
    let mut config = Config { file: Some(file.clone()), ..author.config(&[]) };
    config.trust.public_keys = vec![key.display().to_string()];
    let harness = Harness::start(config).await.unwrap();
    write_set(&file, &second);
    until(&harness, |reply| reply.last_error.contains("none of its signatures (1)")).await;
    std::fs::write(&key, new.public_pem().unwrap()).unwrap();
    until(&harness, |reply| reply.generation == 2 && reply.last_error.is_empty()).await;
    assert_eq!(says_of_latest(&harness).await, Decision::Refuse);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_in_use_whose_key_was_taken_away_is_not_loaded_again() {
    let author = Author::new();
    let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let source = author.push(OTHER, "policy:1").await;
    author.sign(&source, &old).await;
    let (file, key) = (author.folder.path().join("policies.toml"), author.folder.path().join("key.pub"));
    std::fs::write(&key, old.public_pem().unwrap()).unwrap();
    write_set(&file, &source);
    let mut config = Config { file: Some(file.clone()), ..author.config(&[]) };
    config.trust.public_keys = vec![key.display().to_string()];
    let harness = Harness::start(config).await.unwrap();
    let with_another = std::fs::read_to_string(&file).unwrap()
        + "\n[[eligibility]]\nname = 'another'\nsource = 'builtin:size-limits'\n";
    std::fs::write(&key, new.public_pem().unwrap()).unwrap();
    std::fs::write(&file, &with_another).unwrap();
    let reply = until(&harness, |reply| reply.last_error.contains("none of its signatures (1)")).await;
    assert_eq!(reply.generation, 1);
    author.sign(&source, &new).await;
    until(&harness, |reply| reply.generation == 2 && reply.last_error.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_registry_is_away_the_old_set_stays_and_the_new_one_comes_with_it() {
    let mut author = Author::new();
    let (first, second) = (author.push(OTHER, "policy").await, author.push(NO_LATEST, "policy").await);
    let file = author.folder.path().join("policies.toml");
    write_set(&file, &first);
    let config = Config { file: Some(file.clone()), ..author.config(&[]) };
    let harness = Harness::start(config).await.unwrap();
    author.registry.kill().unwrap();
    write_set(&file, &second);
    let reply = until(&harness, |reply| reply.last_error.contains("cannot be reached")).await;
    assert!(reply.last_error.contains(&format!("pulling {second}")), "{}", reply.last_error);
    assert_eq!((reply.generation, says_of_latest(&harness).await), (1, Decision::Accept));
    author.registry.restart().unwrap();
    until(&harness, |reply| reply.generation == 2).await;
    assert_eq!(says_of_latest(&harness).await, Decision::Refuse);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_plugin_that_somebody_changed_is_never_used() {
    let mut author = Author::new();
    let source = author.push(OTHER, "policy").await;
    Harness::start(using(author.config(&[]), &source)).await.unwrap();
    let place = author.kept().join(source.pin().unwrap().hex());
    let plugin = place.join("plugin.wasm");
    let tampered = std::fs::read(built(NO_LATEST)).unwrap();

    std::fs::write(&plugin, &tampered).unwrap();
    let harness = Harness::start(using(author.config(&[]), &source)).await.unwrap();
    assert_eq!(says_of_latest(&harness).await, Decision::Accept, "the registry's is used");
    assert_eq!(std::fs::read(&plugin).unwrap(), std::fs::read(built(OTHER)).unwrap(), "and kept");

    std::fs::write(&plugin, &tampered).unwrap();
    author.registry.kill().unwrap();
    let error = refused(author.config(&[]), &source).await;
    assert!(error.contains("cannot be reached"), "{error}");
    assert!(!place.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_says_is_refused_by_what_is_wrong() {
    let author = Author::new();
    let good = author.push(OTHER, "changed").await;
    let stranger = format!("oci://{}/changed@{}", author.registry.host(), BlobDigest::of(b"nothing"));
    let error = refused(author.config(&[]), &stranger.parse().unwrap()).await;
    assert!(error.contains("the plugin not found") && error.contains(&stranger), "{error}");

    let image = "application/vnd.oci.image.config.v1+json";
    let config = author.push_changed(|manifest| manifest["config"]["mediaType"] = image.into()).await;
    let two = author.push_changed(|manifest| {
        let layers = manifest["layers"].as_array_mut().unwrap();
        layers.push(layers[0].clone());
    });
    let two = two.await;
    let longer = author.push_changed(|manifest| manifest["layers"][0]["size"] = json!(40 << 20)).await;
    let shorter = author.push_changed(|manifest| manifest["layers"][0]["size"] = json!(10)).await;
    let absent = BlobDigest::of(b"absent").to_string();
    let absent = author.push_changed(|manifest| manifest["annotations"]["x"] = absent.into()).await;
    for (source, expected) in [
        (&config, "it is no WebAssembly: its config is of the type"),
        (&two, "it has 2 layers; a plugin has exactly one"),
        (&longer, "it has 41943040 bytes, more than 33554432 (policy.limits.plugin_size)"),
        (&shorter, "is corrupt: it has"),
    ] {
        let error = refused(author.config(&[]), source).await;
        assert!(error.contains(expected) && error.contains(&format!("pulling {source}")), "{error}");
    }
    assert!(Harness::start(using(author.config(&[]), &absent)).await.is_ok(), "annotations are free");

    let mut small = author.config(&[]);
    small.limits.plugin_size = bytesize::ByteSize::b(1_000);
    let error = refused(small, &good).await;
    assert!(error.contains("more than 1000 (policy.limits.plugin_size)"), "{error}");

    let mut without_tls = author.config(&[]);
    without_tls.registry.plain_http.clear();
    let error = refused(without_tls, &good).await;
    assert!(error.contains("does not speak HTTPS"), "{error}");
}

/// The registry's storage lies: other bytes under the same name. It checks manifests itself, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_another_digest_are_refused() {
    let author = Author::new();
    let source = author.push(OTHER, "policy").await;
    let plugin = BlobDigest::of(&std::fs::read(built(OTHER)).unwrap());
    author.registry.tamper(&plugin.hex()).unwrap();
    let error = refused(author.config(&[]), &source).await;
    assert!(
        error.contains(&format!("the plugin {plugin} is corrupt")) && error.contains("its content is"),
        "{error}"
    );
    assert!(!author.kept().exists(), "it was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_registry_is_asked_with_the_docker_configs_credential() {
    let registry = Registry::start_private().unwrap();
    let author = Author { registry, folder: tempfile::tempdir().unwrap() };
    let basic = json!({ "auths": { author.registry.host(): {
        "username": testkit::registry::USER, "password": testkit::registry::PASSWORD,
    } } });
    std::fs::write(author.folder.path().join("config.json"), basic.to_string()).unwrap();
    let mut config = author.config(&[]);
    let bytes = Bytes::from(std::fs::read(built(OTHER)).unwrap());
    let outline = policy::outline(&bytes, config.limits.clone()).unwrap();
    let name = author.name("policy");
    let push = async |config: &Config| {
        let registries = Registries::new(config).unwrap();
        registries.push(bytes.clone(), "a.wasm", &outline, &name, Access::own()).await
    };
    let error = format!("{:#}", push(&config).await.unwrap_err());
    assert!(error.contains("wants a credential") && error.contains("pushing oci://"), "{error}");
    config.registry.docker_config = Some(author.folder.path().into());
    let pushed = push(&config).await.unwrap();
    assert!(Harness::start(using(config, &pushed)).await.is_ok());
}
