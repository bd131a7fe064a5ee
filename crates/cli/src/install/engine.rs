//! The Docker engine that runs here: asked what it is, over its socket, and looked at from outside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::time::{Instant, sleep};

use super::docker::{self, Engine};

/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// An engine's word on itself has some KiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long an engine may take from its start until it answers.
const START_MAX: Duration = Duration::from_secs(90);
const START_POLL: Duration = Duration::from_millis(300);
/// The program that is the engine.
const PROGRAM: &str = "dockerd";

/// Asks the engine that listens there.
pub async fn ask(socket: &Path) -> anyhow::Result<Engine> {
    let doing = || format!("ask the Docker engine on {}", socket.display());
    ensure!(
        socket.exists(),
        "no Docker engine listens on {}: start it (systemctl start docker), or name its socket with --docker-socket",
        socket.display()
    );
    let client = reqwest::Client::builder().unix_socket(socket).timeout(ANSWER_MAX).no_proxy().build()?;
    let answer = client.get("http://docker/info").send().await.with_context(doing)?;
    let answer = answer.error_for_status().with_context(doing)?;
    let length = answer.content_length().unwrap_or_default();
    ensure!(length <= ANSWER_BYTES_MAX as u64, "{}: its answer is too long", doing());
    let bytes = answer.bytes().await.with_context(doing)?;
    ensure!(bytes.len() <= ANSWER_BYTES_MAX, "{}: its answer is too long", doing());
    serde_json::from_slice(&bytes).with_context(doing)
}

/// Waits for an engine that was just restarted, until it answers; where it is to work with sluice, it must.
pub async fn wait(socket: &Path, with_sluice: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        match ask(socket).await {
            Ok(engine) if engine.is_switched() || !with_sluice => return Ok(()),
            Ok(engine) => bail!(
                "the engine answers, but works with {}: is it started with another configuration (--config-file)?",
                engine.driver()
            ),
            Err(error) if started.elapsed() > START_MAX => {
                return Err(error.context(format!(
                    "the engine does not answer {START_MAX:?} after its restart: `journalctl -u docker` says why"
                )));
            }
            Err(_) => sleep(START_POLL).await,
        }
    }
}

/// Refuses an engine that was started with what its configuration is to say.
pub fn check_flags(config: &Path) -> anyhow::Result<()> {
    for words in command_lines() {
        if docker::reads(&words, config) {
            docker::check_flags(&words)?;
        }
    }
    Ok(())
}

/// Of all engines of this machine.
fn command_lines() -> Vec<Vec<String>> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let lines = processes.flatten().filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let words = lines.map(|line| {
        let text = String::from_utf8_lossy(&line).into_owned();
        text.split('\0').map(str::to_owned).collect::<Vec<_>>()
    });
    let is_engine = |words: &Vec<String>| {
        let program = words.first().map(PathBuf::from);
        program.is_some_and(|program| program.file_name().is_some_and(|name| name == PROGRAM))
    };
    words.filter(is_engine).collect()
}
