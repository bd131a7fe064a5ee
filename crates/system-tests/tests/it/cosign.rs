//! cosign itself on the other side: each verifies what the other signed.

use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use system_tests::{Scratch, binaries};
use testkit::{Registry, tools};

/// cosign with a home of its own; no service but the registry is asked.
struct Cosign<'a>(&'a Scratch);

impl Cosign<'_> {
    fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(tools().join("forky/usr/bin/cosign"));
        command.args(arguments).current_dir(self.0.path(""));
        command.env("HOME", self.0.path("home")).env("COSIGN_PASSWORD", "");
        command.output().context("starting cosign, which `./just test` fetches")
    }

    fn succeed(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.run(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cosign {arguments:?}: {errors}");
        Ok(())
    }

    fn verify(&self, key: &str, image: &str) -> anyhow::Result<Output> {
        self.run(&["verify", "--key", key, "--insecure-ignore-tlog", "--allow-http-registry", image])
    }
}

#[test]
fn each_verifies_what_the_other_signed() -> anyhow::Result<()> {
    let (scratch, registry) = (Scratch::new()?, Registry::start()?);
    let cosign = Cosign(&scratch);
    let plugin = binaries::plugin("schema-version.wasm")?.display().to_string();
    let name = format!("oci://{}/policies/mine:1", registry.host());
    let source = scratch.succeed(["policy", "push", "--plain-http", &plugin, &name])?.trim().to_owned();
    let image = source.trim_start_matches("oci://").replace(":1@", "@");
    let pull = |key: &str| {
        let trust = format!("policy.trust.public_keys=[\"{}\"]", scratch.path(key).display());
        let file = scratch.path("pulled.wasm").display().to_string();
        scratch.run(["--set", &trust, "policy", "pull", "--plain-http", &source, "-o", &file])
    };
    scratch.succeed(["policy", "keygen", &scratch.path("mine").display().to_string()])?;
    cosign.succeed(&["generate-key-pair"])?;
    for key in ["mine.pub", "cosign.pub"] {
        assert!(!cosign.verify(key, &image)?.status.success(), "{key}: nobody signed it");
        assert!(!pull(key)?.status.success(), "{key}: nobody signed it");
    }

    // Ours first: cosign adds to what is there.
    let private = scratch.path("mine.pem").display().to_string();
    scratch.succeed(["policy", "sign", "--plain-http", &source, "--key", &private])?;
    let layout = ["--tlog-upload=false", "--new-bundle-format=false", "--use-signing-config=false"];
    let sign = [&["sign", "--key", "cosign.key", "--allow-http-registry", "--yes"], &layout[..], &[&image]];
    cosign.succeed(&sign.concat())?;
    for key in ["mine.pub", "cosign.pub"] {
        let verified = cosign.verify(key, &image)?;
        assert!(verified.status.success(), "{key}: {}", String::from_utf8_lossy(&verified.stderr));
        let pulled = pull(key)?;
        assert!(pulled.status.success(), "{key}: {}", String::from_utf8_lossy(&pulled.stderr));
        assert_eq!(std::fs::read(scratch.path("pulled.wasm"))?, std::fs::read(&plugin)?);
    }
    Ok(())
}
