//! Images that not everybody may read: the registry's answer to the pull's own credential decides, and after the pull
//! nobody needs one.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use proto::cri::AuthConfig;
use system_tests::kubernetes::{Node, Options};
use system_tests::{Numbered, Scratch, noise};
use testkit::registry::{PASSWORD, USER};
use testkit::{ImageSpec, LayoutWriter, Registry, Tarball};

const FILES: u64 = 12;
/// Of a grant: the test goes on after the first ones have expired.
const GRANT: Duration = Duration::from_secs(4);

fn auth(password: &str) -> Option<AuthConfig> {
    Some(AuthConfig { username: USER.to_owned(), password: password.to_owned(), ..AuthConfig::default() })
}

/// Nothing arrives but what is read.
fn options() -> Options {
    let settings = vec!["frontend.background=false".to_owned()];
    Options { private: true, services: true, settings, ..Options::default() }
}

/// Whether an image of this one's registry streams.
fn streaming(node: &Node, image: &str) -> anyhow::Result<bool> {
    let status = node.status()?;
    let host = image.split('/').next().unwrap_or_default();
    let images = status["images"].as_array().cloned().unwrap_or_default();
    Ok(images.iter().any(|image| image["reference"].as_str().is_some_and(|name| name.starts_with(host))))
}

/// Files below a folder that hold a text.
pub(crate) fn files_with(folder: &Path, text: &[u8]) -> anyhow::Result<Vec<String>> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.file_type()?.is_file()
                && fs::read(entry.path())?.windows(text.len()).any(|part| part == text)
            {
                found.push(entry.path().display().to_string());
            }
        }
    }
    Ok(found)
}

#[test]
fn the_credential_of_the_pull_decides_and_is_not_needed_afterwards() -> anyhow::Result<()> {
    let fetcher = vec![format!("fetcher.grant_ttl={}s", GRANT.as_secs())];
    let options = Options { image_service: true, fetcher, ..options() };
    let mut node = Node::start(&options)?;
    let numbered = Numbered { files: FILES, len: 300_000, seed: 70 };
    let image = node.push_private("app", &numbered.image()?)?;
    let refused = |node: &Node, auth: Option<AuthConfig>| -> anyhow::Result<()> {
        let error =
            format!("{:#}", node.cri.pull_as(&image, auth).err().ok_or_else(|| anyhow::anyhow!("pulled"))?);
        anyhow::ensure!(error.contains("401") || error.contains("authorization failed"), "{error}");
        anyhow::ensure!(!error.contains(PASSWORD) && !streaming(node, &image)?, "{error}");
        Ok(())
    };
    refused(&node, None)?;
    refused(&node, auth("wrong"))?;
    node.cri.pull_as(&image, auth(PASSWORD))?;
    assert!(streaming(&node, &image)?, "it does not stream: {}", node.sluice.log());
    // All of it is in the store now, and still not for everybody.
    node.cri.remove_image(&image)?;
    node.settle(|_| !streaming(&node, &image).unwrap_or(true))?;
    refused(&node, None)?;
    refused(&node, auth("wrong"))?;

    node.cri.pull_as(&image, auth(PASSWORD))?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..2)?;
    let private = node.private.as_mut().ok_or_else(|| anyhow::anyhow!("a private registry"))?;
    private.lock_out()?;
    sleep(GRANT);
    numbered.read_inside(&node, &container, 2..5)?;
    node.sluice.kill()?;
    node.restart_sluice(&options)?;
    numbered.read_inside(&node, &container, 5..8)?;
    sleep(GRANT);
    numbered.read_inside(&node, &container, 8..FILES)?;
    // And another container of it.
    let other = node.cri.start(&pod, "other", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &other, 0..FILES)?;

    for secret in
        [PASSWORD.to_owned(), base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"))]
    {
        let found = files_with(node.scratch().path("").as_path(), secret.as_bytes())?;
        assert!(found.is_empty(), "a password stands in {found:?}");
    }
    Ok(())
}

#[test]
fn who_may_no_longer_read_an_image_in_its_registry_reads_no_more_of_it_here() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.json");
    fs::write(&config, "{}")?;
    let own = [
        format!("frontend.credentials.docker_config={}", config.display()),
        "frontend.read_timeout=5s".to_owned(),
    ];
    let fetcher =
        vec![format!("fetcher.grant_ttl={}s", GRANT.as_secs()), "fetcher.grant_recheck=1s".to_owned()];
    let settings = [&options().settings[..], &own].concat();
    let mut node = Node::start(&Options { settings, fetcher, ..options() })?;
    let host = node.private.as_ref().map(Registry::host).unwrap_or_default();
    fs::write(&config, docker_config(&host).to_string())?;
    let numbered = Numbered { files: FILES, len: 300_000, seed: 74 };
    let image = node.push_private("app", &numbered.image()?)?;
    node.cri.pull_as(&image, auth(PASSWORD))?;
    assert!(streaming(&node, &image)?, "it does not stream: {}", node.sluice.log());
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..2)?;
    // Grants have ended meanwhile, and the registry said yes again.
    sleep(2 * GRANT);
    numbered.read_inside(&node, &container, 2..4)?;

    node.private.as_mut().context("a private registry")?.lock_out()?;
    sleep(2 * GRANT);
    // Far from what was read: with that travels what stands beside it.
    let far = || numbered.read_inside(&node, &container, FILES - 1..FILES);
    assert!(far().is_err(), "it reads on: {}", node.sluice.log());
    // What it has is its own, and the container runs.
    numbered.read_inside(&node, &container, 0..4)?;
    let fetcher = node.backend.as_ref().context("a backend")?.fetcher.server.log();
    assert!(fetcher.contains("a grant is not renewed"), "{fetcher}");
    assert!(!fetcher.contains(PASSWORD) && !node.sluice.log().contains(PASSWORD), "a password was told");

    node.private.as_mut().context("a private registry")?.let_in()?;
    node.settle(|_| numbered.read_inside(&node, &container, FILES - 1..FILES).is_ok())?;
    numbered.read_inside(&node, &container, 4..FILES)
}

#[test]
fn without_a_credential_of_ours_a_private_image_is_pulled_as_ever() -> anyhow::Result<()> {
    let node = Node::start(&options())?;
    let numbered = Numbered { files: 2, len: 300_000, seed: 71 };
    let image = node.push_private("app", &numbered.image()?)?;
    // By containerd itself: nobody tells us.
    node.cri.pull_as(&image, auth(PASSWORD))?;
    assert!(!streaming(&node, &image)?);
    assert!(node.sluice.log().contains("denied"), "no reason was told: {}", node.sluice.log());
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..2)
}

#[test]
fn dockers_configuration_and_the_kubelets_plugins_are_asked() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let docker = vec![format!("frontend.credentials.docker_config={}", path("config.json"))];
    let plugins = vec![
        format!("frontend.credentials.kubelet_config={}", path("providers")),
        format!("frontend.credentials.kubelet_plugins={}", folder.path().display()),
    ];
    for (seed, settings) in [(72, docker), (73, plugins)] {
        let mut node = Node::start(&options())?;
        let host = node.private.as_ref().map(Registry::host).unwrap_or_default();
        fs::write(path("config.json"), docker_config(&host).to_string())?;
        fs::write(path("providers"), providers(&host).to_string())?;
        fs::write(path("plugin"), format!("#!/bin/sh\ncat > /dev/null\necho '{}'\n", answer(&host)))?;
        fs::set_permissions(path("plugin"), fs::Permissions::from_mode(0o755))?;
        // Something is there to be asked for while containerd finds sluice again.
        node.cri.pod("before")?;
        node.sluice.end()?;
        let settings = [options().settings, settings].concat();
        node.restart_sluice(&Options { settings, ..options() })?;
        let numbered = Numbered { files: 2, len: 300_000, seed };
        let image = node.push_private("app", &numbered.image()?)?;
        node.cri.pull_as(&image, auth(PASSWORD))?;
        assert!(streaming(&node, &image)?, "it does not stream: {}", node.sluice.log());
        let pod = node.cri.pod("one")?;
        let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
        numbered.read_inside(&node, &container, 0..2)?;
    }
    Ok(())
}

/// `sluice --json COMMAND…` with this password, or without any: what it printed, or its message.
fn sluice(
    scratch: &Scratch,
    password: Option<&str>,
    command: &[&str],
) -> anyhow::Result<Result<String, String>> {
    let login = password.map_or(&[][..], |_| &["--username", USER, "--password-stdin"]);
    let mut command = scratch.command([&["--json", "--plain-http"], login, command].concat())?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn()?;
    if let Some(mut input) = process.stdin.take() {
        input.write_all(password.unwrap_or_default().as_bytes())?;
    }
    let output = process.wait_with_output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

/// Under containerd a wrong credential ends with containerd's own question for the manifest. Here nobody but sluice asks.
#[test]
fn what_the_node_has_already_is_not_mounted_for_a_wrong_credential() -> anyhow::Result<()> {
    let (scratch, registry) = (Scratch::new()?, Registry::start_private()?);
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("v1", &ImageSpec::new([Tarball::new().file("file", &noise(1, 300_000)).finish()]))?;
    let image = registry.push(&layout.reference("v1"), "app:v1")?;
    let mount = |name: &str, password: Option<&str>| {
        let root = scratch.mount_point(name)?;
        let root = root.to_str().context("a UTF-8 path")?;
        sluice(&scratch, password, &["mount", "--complete", &image, root])
    };
    mount("first", Some(PASSWORD))?.map_err(anyhow::Error::msg)?;
    assert_eq!(scratch.json(["status"])?["images"][0]["complete"], true);
    for password in [None, Some("not-it")] {
        let refusals = || registry.log().matches("/manifests/v1 HTTP/1.1\" 401").count();
        for command in ["mount", "import"] {
            let before = refusals();
            let answer = match command {
                "mount" => mount("second", password)?,
                _ => sluice(&scratch, password, &[command, &image])?,
            };
            let message = answer.err().with_context(|| format!("{command} with {password:?} succeeds"))?;
            assert!(message.contains(&registry.host()) && message.contains("401"), "{command}: {message}");
            assert!(!message.contains("not-it"), "a password in a message: {message}");
            assert!(refusals() > before, "{command}: the registry was not asked: {}", registry.log());
        }
        assert_eq!(fs::read_dir(scratch.path("second"))?.count(), 0, "it is mounted");
    }
    mount("second", Some(PASSWORD))?.map_err(anyhow::Error::msg)?;
    assert!(fs::read(scratch.path("second").join("file"))? == noise(1, 300_000), "wrong bytes");
    Ok(())
}

/// The kubelet's configuration of its plugins.
fn providers(host: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "plugin",
            "matchImages": [host],
            "defaultCacheDuration": "1m",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        }],
    })
}

fn docker_config(host: &str) -> serde_json::Value {
    serde_json::json!({ "auths": { host: { "username": USER, "password": PASSWORD } } })
}

/// Of a plugin.
fn answer(host: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "auth": { host: { "username": USER, "password": PASSWORD } },
    })
}
