//! Decisions of policies that run are written down without a restart, and taken again.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStderr, Output, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use system_tests::services::{Backend, Service};
use system_tests::{Scratch, binaries};
use testkit::{ImageSpec, LayoutWriter, Registry, Tarball, port};

const DIFFERENT: i32 = 5;

/// A mesh with one policy, `mine`, and an image of two tags.
struct Mesh {
    backend: Backend,
    _policy: Service,
    plugin: String,
    images: [String; 2],
    _registry: Registry,
    scratch: Scratch,
}

impl Mesh {
    fn start() -> anyhow::Result<Mesh> {
        let scratch = Scratch::new()?;
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("app", &ImageSpec::new([Tarball::new().file("file", b"content").finish()]))?;
        let registry = Registry::start()?;
        let push = |name| registry.push(&layout.reference("app"), name);
        let images = [push("app:latest")?, push("app:2")?];
        let plugin = binaries::plugin("tests/no-latest.wasm")?.display().to_string();
        let source = scratch.json(["policy", "check", &plugin])?["source"].clone();
        // The policies may come up after the fetcher.
        let patience = ["fetcher.judging.unanswered=refuse", "fetcher.judging.wait=30s"].map(str::to_owned);
        let backend = Backend::start(&scratch, port::free()?, &patience, &[])?;
        let set = format!("policy.set.eligibility=[{{name=\"mine\", source={source}}}]");
        let policy = backend.service(&scratch, "policy", &[set])?;
        Ok(Mesh { backend, _policy: policy, plugin, images, _registry: registry, scratch })
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<std::process::Command> {
        let url = self.backend.nats.url();
        self.scratch.command([&["--nats", url.as_str()], arguments].concat())
    }

    fn sluice(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(arguments)?.output()?)
    }

    /// Has both tags judged: `latest` is refused.
    fn decide(&self) -> anyhow::Result<()> {
        for image in &self.images {
            let output = self.sluice(&["inspect", "--plain-http", image])?;
            ensure!(
                !output.stdout.is_empty(),
                "inspect {image}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

/// `sluice policy record` that hears one service.
struct Recording {
    process: Child,
    says: BufReader<ChildStderr>,
}

impl Recording {
    fn start(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<Recording> {
        let mut command = mesh.command(&[&["policy", "record"], arguments].concat())?;
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let says = BufReader::new(process.stderr.take().context("what it says")?);
        let mut recording = Recording { process, says };
        let said = recording.said()?;
        ensure!(said == "one policy service tells its decisions", "{said}");
        Ok(recording)
    }

    fn said(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// What it says in the end.
    fn end(mut self) -> anyhow::Result<String> {
        let said = self.said()?;
        let status = self.process.wait()?;
        ensure!(status.success(), "{status}: {said}");
        Ok(said)
    }
}

#[test]
fn decisions_of_services_that_run_are_written_down_and_taken_again() -> anyhow::Result<()> {
    let mesh = Mesh::start()?;
    // Heard by nobody.
    mesh.decide()?;
    let file = mesh.scratch.path("decisions");
    let name = file.display().to_string();
    let (to_file, mut printed) = (
        Recording::start(&mesh, &["--output", &name, "--count", "2"])?,
        Recording::start(&mesh, &["--for", "1h"])?,
    );
    mesh.decide()?;
    assert_eq!(to_file.end()?, "2 decisions were written down");
    let recorded = fs::read_to_string(&file)?;
    assert_eq!(recorded.lines().count(), 2, "{recorded}");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);

    // The other one goes on until ctrl-C, and has heard the same.
    mesh.decide()?;
    let again = Recording::start(&mesh, &["--output", &name, "--count", "1"])?;
    mesh.decide()?;
    again.end()?;
    let mut output = BufReader::new(printed.process.stdout.take().context("what it prints")?);
    let mut lines = String::new();
    for _ in 0..6 {
        output.read_line(&mut lines)?;
    }
    let id = i32::try_from(printed.process.id()).ok().and_then(Pid::from_raw).context("its id")?;
    kill_process(id, Signal::INT)?;
    assert_eq!(printed.end()?, "6 decisions were written down");
    assert!(lines.lines().count() == 6 && lines.starts_with(&recorded), "{lines}");
    assert_eq!(fs::read_to_string(&file)?.lines().count(), 3, "an earlier record was overwritten");

    let replay = |settings: &str| {
        let settings_file = mesh.scratch.path("settings.toml");
        fs::write(&settings_file, settings)?;
        let settings_file = settings_file.display().to_string();
        let plugin = ["--plugin", mesh.plugin.as_str(), "--as", "mine", "--settings", &settings_file];
        let output =
            mesh.scratch.run([&["--json", "policy", "replay", name.as_str()][..], &plugin].concat())?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let replayed: Value = serde_json::from_slice(&output.stdout).with_context(|| errors)?;
        anyhow::Ok((output.status.code(), replayed))
    };
    let (exit, same) = replay("")?;
    let counts = |replayed: &Value| ["decisions", "different", "unreadable"].map(|of| replayed[of].clone());
    assert_eq!((exit, counts(&same)), (Some(0), [json!(3), json!(0), json!(0)]), "{same}");
    let (exit, other) = replay("tags = ['2', '3']")?;
    assert_eq!((exit, counts(&other)), (Some(DIFFERENT), [json!(3), json!(3), json!(0)]), "{other}");
    Ok(())
}

#[test]
fn without_nats_it_is_said_how_decisions_are_written_down() -> anyhow::Result<()> {
    let said = Scratch::new()?.refuse(["policy", "record"])?;
    assert!(said.contains("nats.url") && said.contains("policy.record.file"), "{said}");
    Ok(())
}
