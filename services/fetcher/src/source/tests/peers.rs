//! The reference registry, and images as skopeo, umoci and buildah write them.

use std::path::Path;
use std::process::Command;

use testkit::{ImageSpec, LayoutWriter, Registry};

use super::*;
use crate::source::{BlobDigest, Credential};

/// `user` with the password `pa:ss`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuZImxV28ixwKVAA3Ib6WvqJ3jaF2SHwO";

/// A large layer that compresses badly, so that it comes in many pieces.
fn image() -> ImageSpec {
    let noise: Vec<u8> =
        (0..3_000_000_u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect();
    ImageSpec::new([noise, b"small".to_vec()])
}

fn run(program: &str, arguments: &[&str]) {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// All layers are there, whole and right; returns the manifest's digest.
async fn check(name: &str, access: Access) -> String {
    let source = open(&config(), name, access).await.unwrap();
    let found = source.manifest(&Platform::default()).await.unwrap();
    assert!(!found.layers.is_empty());
    for layer in &found.layers {
        let bytes = read(&source, layer, 0).await.unwrap();
        assert_eq!(BlobDigest::of(&bytes).to_string(), layer.digest);
        assert_eq!(read(&source, layer, layer.size / 2).await.unwrap(), bytes[bytes.len() / 2..]);
    }
    found.manifest_digest
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_registry() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = LayoutWriter::create(folder.path()).unwrap();
    let digest = writer.image("v1", &image()).unwrap();
    let registry = Registry::start().unwrap();
    let reference = registry.push(&writer.reference("v1"), "team/app:v1").unwrap();
    assert_eq!(check(&reference, plain_http()).await, digest);
    let by_digest = registry.reference(&format!("team/app@{digest}"));
    assert_eq!(check(&by_digest, plain_http()).await, digest);
    let source = open(&config(), &registry.reference("team/app:v2"), plain_http()).await.unwrap();
    let error = source.manifest(&amd64()).await.unwrap_err();
    assert!(matches!(&error, SourceError::NotFound { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_registry_with_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = LayoutWriter::create(folder.path()).unwrap();
    let digest = writer.image("v1", &image()).unwrap();
    let registry = Registry::start_with(Some(HTPASSWD.into())).unwrap();
    let name = registry.reference("team/app:v1");
    let target = format!("docker://{name}");
    let copy =
        ["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds", "user:pa:ss"];
    run("skopeo", &[&copy[..], &[&writer.reference("v1"), &target]].concat());
    let credential = Credential::Basic { username: "user".into(), password: "pa:ss".into() };
    let access = Access { credential: Some(credential), plain_http: true, own: false };
    assert_eq!(check(&name, access).await, digest);
    let error = open(&config(), &name, plain_http()).await.unwrap().manifest(&amd64()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unauthorized { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_certificate_of_a_private_authority() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = LayoutWriter::create(&folder.path().join("layout")).unwrap();
    let digest = writer.image("v1", &image()).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (authority, certificate, key) = (path("authority.pem"), path("certificate.pem"), path("key.pem"));
    let make = |subject: &str, extension: &str, files: &[&str]| {
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        let names = ["-subj", subject, "-addext", "subjectAltName=IP:127.0.0.1", "-addext", extension];
        run("openssl", &[&request[..], &names, files].concat());
    };
    let authority_key = path("authority.key");
    make("/CN=authority", "keyUsage=keyCertSign", &["-keyout", &authority_key, "-out", &authority]);
    let signed = ["-CA", &authority, "-CAkey", &authority_key, "-keyout", &key, "-out", &certificate];
    make("/CN=registry", "basicConstraints=critical,CA:FALSE", &signed);

    let port = testkit::port::free().unwrap();
    let settings = serde_json::json!({
        "version": 0.1, "storage": { "filesystem": { "rootdirectory": path("data") } },
        "http": { "addr": format!("127.0.0.1:{port}"), "tls": { "certificate": &certificate, "key": &key } },
    });
    std::fs::write(path("config.yml"), settings.to_string()).unwrap();
    let mut command = Command::new("docker-registry");
    command.args(["serve", &path("config.yml")]);
    let mut server = testkit::Server::spawn(command, &folder.path().join("log"), "docker-registry").unwrap();
    server.wait_for_port("docker-registry", port).unwrap();
    let name = format!("127.0.0.1:{port}/app:v1");
    let copy = ["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", &writer.reference("v1")];
    run("skopeo", &[&copy[..], &[&format!("docker://{name}")]].concat());

    let trusting = SourceConfig { certificates: vec![authority.into()], ..config() };
    let source = open(&trusting, &name, Access::default()).await.unwrap();
    assert_eq!(source.manifest(&amd64()).await.unwrap().manifest_digest, digest);
    let error =
        open(&config(), &name, Access::default()).await.unwrap().manifest(&amd64()).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_restarts_in_mid_transfer() {
    use futures::StreamExt;
    let folder = tempfile::tempdir().unwrap();
    let mut writer = LayoutWriter::create(folder.path()).unwrap();
    // More than the sockets between here and there can hold.
    let noise: Vec<u8> =
        (0..40_000_000_u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect();
    let spec = ImageSpec { layers: vec![(noise.clone(), None)], config: None };
    writer.image("v1", &spec).unwrap();
    let mut registry = Registry::start().unwrap();
    let name = registry.push(&writer.reference("v1"), "app").unwrap();
    let patient = RetryConfig { attempts: 50, ..config().retry };
    let source = open(&SourceConfig { retry: patient, ..config() }, &name, plain_http()).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    let mut stream = source.blob(&found.layers[0], 0).await.unwrap();
    let mut read = stream.next().await.unwrap().unwrap().to_vec();
    tokio::task::block_in_place(|| {
        registry.kill().unwrap();
        registry.restart().unwrap();
    });
    while let Some(bytes) = stream.next().await {
        read.extend_from_slice(&bytes.unwrap());
    }
    assert!(read == noise);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_and_docker_manifests_as_skopeo_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = LayoutWriter::create(&folder.path().join("layout")).unwrap();
    writer.image("v1", &image()).unwrap();
    let archive = format!("docker-archive:{}", folder.path().join("saved.tar").display());
    run("skopeo", &["copy", "--quiet", &writer.reference("v1"), &format!("{archive}:app:v1")]);
    check(&archive, Access::default()).await;

    let registry = Registry::start().unwrap();
    let name = registry.reference("app:docker");
    let target = format!("docker://{name}");
    run(
        "skopeo",
        &["copy", "--quiet", "--format=v2s2", "--dest-tls-verify=false", &writer.reference("v1"), &target],
    );
    let source = open(&config(), &name, plain_http()).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    assert_eq!(found.media_type, "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(found.ineligible, [""; 0]);
    check(&name, plain_http()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_as_umoci_and_buildah_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let content = folder.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("file"), "content").unwrap();

    let layout = path("umoci");
    run("umoci", &["init", "--layout", &layout]);
    let image = format!("{layout}:v1");
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--image", &image, &content.display().to_string(), "/content"]);
    check(&format!("oci:{image}"), Access::default()).await;

    buildah(&folder.path().join("storage"), &content, &format!("oci:{}", path("buildah")));
    check(&format!("oci:{}", path("buildah")), Access::default()).await;
}

/// An image of one file, built and written out with buildah, in a storage of its own.
fn buildah(storage: &Path, content: &Path, target: &str) {
    let storage = storage.display().to_string();
    let dockerfile = content.with_file_name("Dockerfile");
    std::fs::write(&dockerfile, "FROM scratch\nCOPY file /file\n").unwrap();
    let (run_root, dockerfile) = (format!("{storage}-run"), dockerfile.display().to_string());
    let own = ["--storage-driver=vfs", "--root", &storage, "--runroot", &run_root];
    let build = [
        "bud",
        "--quiet",
        "--isolation=chroot",
        "-f",
        &dockerfile,
        "-t",
        "app",
        &content.display().to_string(),
    ]
    .map(str::to_owned);
    let push = ["push", "--quiet", "localhost/app", target].map(str::to_owned);
    for command in [&build[..], &push] {
        let command: Vec<&str> = own.into_iter().chain(command.iter().map(String::as_str)).collect();
        run("buildah", &command);
    }
}
