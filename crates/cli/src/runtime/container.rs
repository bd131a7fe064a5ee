//! One container, through the OCI runtime's command line.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use oci_spec::runtime::Spec;
use serde::Deserialize;
use tokio::process::{Child, Command};

use super::{Network, Ports, defaults};

/// Tried in this order.
const RUNTIMES: &[&str] = &["runc", "crun"];

/// An OCI runtime: its program, and the folder where it keeps its state.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    state: PathBuf,
}

impl Runtime {
    /// `program`, or the first one that is installed. `state` is private to the caller, so names cannot collide.
    pub fn find(program: Option<&Path>, state: PathBuf) -> anyhow::Result<Runtime> {
        let program = match program {
            Some(program) if program.components().count() > 1 => program.to_owned(),
            Some(program) => on_path(program).with_context(|| format!("find the runtime {}", program.display()))?,
            None => RUNTIMES.iter().find_map(|name| on_path(Path::new(name))).context(
                "find an OCI runtime: install runc or crun (apt-get install runc), or name one with --runtime",
            )?,
        };
        Ok(Runtime { program, state })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state);
        command
    }

    /// Whether the container exists and has not ended.
    pub fn is_running(&self, id: &str) -> bool {
        #[derive(Deserialize)]
        struct State {
            status: String,
        }
        let output = std::process::Command::new(&self.program)
            .arg("--root")
            .arg(&self.state)
            .args(["state", id])
            .output();
        let state = output.ok().and_then(|output| serde_json::from_slice::<State>(&output.stdout).ok());
        state.is_some_and(|state| state.status != "stopped")
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Sends a signal to the container's first process.
    pub async fn signal(&self, id: &str, signal: i32) -> anyhow::Result<()> {
        let output = self.command().args(["kill", id, &signal.to_string()]).stdin(Stdio::null()).output();
        let output = output.await.with_context(|| format!("send signal {signal} to container {id}"))?;
        if output.status.success() {
            return Ok(());
        }
        bail!("send signal {signal} to container {id}: {}", String::from_utf8_lossy(&output.stderr).trim())
    }

    /// Kills what still runs and forgets the container; one that is not there is fine.
    pub fn delete(&self, id: &str) -> anyhow::Result<()> {
        let output = std::process::Command::new(&self.program)
            .arg("--root")
            .arg(&self.state)
            .args(["delete", "--force", id])
            .output()
            .with_context(|| format!("delete container {id}"))?;
        let message = String::from_utf8_lossy(&output.stderr);
        // A container that ran in the foreground is deleted by the runtime itself.
        if output.status.success() || message.contains("does not exist") {
            return Ok(());
        }
        bail!("delete container {id}: {}", message.trim())
    }
}

/// Finds an executable as a shell would; the system folders as well, which a user's `PATH` may lack.
pub fn on_path(program: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Where a container's three streams go.
#[derive(Clone, Copy, Debug)]
pub enum Streams {
    /// To ours.
    Inherit,
    /// Output and errors into pipes of the returned process; no input.
    Capture,
}

/// What the runtime said when it could not start a container.
#[derive(Debug, thiserror::Error)]
#[error("the runtime did not start the container: {0}")]
pub struct RuntimeFailure(String);

impl RuntimeFailure {
    /// The exit code of a shell, and of Docker: 127 when there is no such command, 126 when it cannot be executed; none when it
    /// was not the command that failed.
    pub fn command_code(&self) -> Option<u8> {
        let message = &self.0;
        if !message.contains("exec") {
            return None;
        }
        let any = |words: &[&str]| words.iter().any(|word| message.to_ascii_lowercase().contains(word));
        if any(&["executable file not found", "executable file `", "no such file or directory"]) {
            return Some(127);
        }
        any(&["permission denied", "is a directory", "exec format error"]).then_some(126)
    }
}

/// What the runtime says when a signal came after the container's end: no failure of its own.
const TOO_LATE: &[&str] = &["no such process", "process already finished", "container not running"];

/// A line of the runtime's log.
#[derive(Deserialize)]
struct LogEntry {
    level: String,
    msg: String,
}

/// A container that exists as a bundle, and runs after [`Container::run`].
#[derive(Debug)]
pub struct Container {
    runtime: Runtime,
    id: String,
    bundle: PathBuf,
    started: bool,
}

impl Container {
    /// Writes the bundle into the new folder `bundle`.
    pub fn create(runtime: Runtime, id: &str, bundle: PathBuf, spec: &Spec) -> anyhow::Result<Container> {
        // The environment may hold secrets: nobody else looks in.
        DirBuilder::new()
            .mode(0o700)
            .create(&bundle)
            .with_context(|| format!("create the bundle {}", bundle.display()))?;
        let file = bundle.join("config.json");
        std::fs::write(&file, serde_json::to_vec(spec)?)
            .with_context(|| format!("write {}", file.display()))?;
        let hosts = bundle.join(defaults::OWN_HOSTS);
        std::fs::write(&hosts, defaults::hosts(id)).with_context(|| format!("write {}", hosts.display()))?;
        Ok(Container { runtime, id: id.to_owned(), bundle, started: false })
    }

    /// Where a container with such a network is reached, from when it runs on.
    pub fn ports(&self, network: Network) -> Ports {
        match network {
            Network::Host => Ports::Machine,
            Network::None => Ports::Own { pid_file: self.pid_file() },
        }
    }

    /// Written by the runtime when the container has started.
    pub fn pid_file(&self) -> PathBuf {
        self.bundle.join("pid")
    }

    /// Starts it in the foreground: the returned process ends when the container does, with its exit code.
    pub fn run(&mut self, streams: Streams, own_group: bool) -> anyhow::Result<Child> {
        let mut command = self.runtime.command();
        command.arg("--log").arg(self.log()).args(["--log-format", "json"]);
        command.arg("run").arg("--pid-file").arg(self.pid_file());
        command.arg("--bundle").arg(&self.bundle).arg(&self.id);
        if let Streams::Capture = streams {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        if own_group {
            command.process_group(0);
        }
        self.started = true;
        command.spawn().with_context(|| format!("start {}", self.runtime.program.display()))
    }

    /// Why the runtime itself failed, if it did: its exit code alone could be the container's.
    pub fn failure(&self) -> Option<RuntimeFailure> {
        let log = std::fs::read_to_string(self.log()).ok()?;
        let mut entries = log.lines().rev().filter_map(|line| serde_json::from_str::<LogEntry>(line).ok());
        let too_late = |entry: &LogEntry| TOO_LATE.iter().any(|words| entry.msg.contains(words));
        let entry = entries.find(|entry| entry.level == "error" && !too_late(entry))?;
        Some(RuntimeFailure(entry.msg))
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("runtime.log")
    }

    /// Kills what still runs and forgets the container.
    pub fn delete(mut self) -> anyhow::Result<()> {
        self.cleanup()
    }

    fn cleanup(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.started) {
            self.runtime.delete(&self.id)?;
        }
        match std::fs::remove_dir_all(&self.bundle) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.bundle.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.cleanup() {
            tracing::warn!(error = %format!("{error:#}"), "clean up after a container");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A runtime that does what `script` says.
    fn container(folder: &Path, script: &str) -> Container {
        use std::os::unix::fs::PermissionsExt as _;
        let program = folder.join("runtime");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = Runtime::find(Some(&program), folder.join("state")).unwrap();
        Container::create(runtime, "c1", folder.join("bundle"), &Spec::default()).unwrap()
    }

    #[tokio::test]
    async fn tells_the_runtimes_failure_from_the_containers() {
        let folder = tempfile::tempdir().unwrap();
        // runtime --root DIR --log FILE --log-format json run …
        let fails = r#"[ "$3" = delete ] || echo '{"level":"error","msg":"no such file"}' > "$4"; exit 1"#;
        let mut container = container(folder.path(), fails);
        let status = container.run(Streams::Capture, true).unwrap().wait().await.unwrap();
        assert_eq!(status.code(), Some(1));
        assert!(container.failure().unwrap().to_string().contains("no such file"));
    }

    #[test]
    fn commands_that_cannot_run_have_the_codes_of_a_shell() {
        let code = |message: &str| RuntimeFailure(message.to_owned()).command_code();
        let prefix = "runc run failed: unable to start container process: exec: ";
        let missing = r#""nope": executable file not found in $PATH"#;
        assert_eq!(code(&format!("{prefix}{missing}")), Some(127));
        assert_eq!(code(&format!(r#"{prefix}"/nope": stat /nope: no such file or directory"#)), Some(127));
        assert_eq!(code(&format!(r#"{prefix}"/etc": permission denied"#)), Some(126));
        assert_eq!(code("error mounting \"/x\" to rootfs: no such file or directory"), None);
    }

    #[tokio::test]
    async fn a_signal_that_came_too_late_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        let fails = r#"[ "$3" = delete ] || echo '{"level":"error","msg":"no such process"}' > "$4"; exit 3"#;
        let mut container = container(folder.path(), fails);
        let status = container.run(Streams::Capture, true).unwrap().wait().await.unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(container.failure().is_none());
    }

    #[tokio::test]
    async fn a_container_takes_its_bundle_and_the_runtimes_state_away() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"case "$3" in delete) echo "$@" > "$(dirname "$0")/deleted";; *) exit 3;; esac"#;
        let mut container = container(folder.path(), script);
        let status = container.run(Streams::Capture, true).unwrap().wait().await.unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(container.failure().is_none());
        drop(container);
        assert!(!folder.path().join("bundle").exists());
        let deleted = std::fs::read_to_string(folder.path().join("deleted")).unwrap();
        assert!(deleted.contains("delete --force c1"), "{deleted}");
    }
}
