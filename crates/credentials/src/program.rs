//! Runs a helper or a plugin: something in, something out, within a time.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// What a program may print, in bytes.
const OUTPUT_MAX: u64 = 1 << 20;
/// What of it is shown in a message, in characters.
const SHOWN_MAX: usize = 120;

#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) file: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Beside our own environment.
    pub(crate) environment: Vec<(String, String)>,
}

/// Not `Debug`: it may hold a secret.
pub(crate) struct Output {
    pub(crate) succeeded: bool,
    pub(crate) answer: Vec<u8>,
    pub(crate) errors: Vec<u8>,
}

impl Program {
    /// Killed when it takes longer than `patience`.
    pub(crate) async fn run(&self, input: &[u8], patience: Duration) -> anyhow::Result<Output> {
        match tokio::time::timeout(patience, self.talk(input)).await {
            Ok(output) => output,
            Err(_) => bail!("no answer within {patience:?}"),
        }
    }

    async fn talk(&self, input: &[u8]) -> anyhow::Result<Output> {
        let mut child = Command::new(&self.file)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("it cannot be started")?;
        expendable(&child);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read is not wrong yet: what it answers counts.
                stdin.write_all(input).await.ok();
            }
        };
        let ((), answer, errors) = tokio::join!(write, read(stdout), read(stderr));
        let (answer, errors) = (answer?, errors?);
        Ok(Output { succeeded: child.wait().await?.success(), answer, errors })
    }
}

/// A node's own process is the last that the kernel ends when memory is short, and what it starts would be too. Where both share
/// a limit, as in a unit of systemd, it must be the program that goes.
fn expendable(child: &tokio::process::Child) {
    if let Some(id) = child.id() {
        // It may have ended already.
        std::fs::write(format!("/proc/{id}/oom_score_adj"), "0").ok();
    }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_MAX + 1).read_to_end(&mut bytes).await?;
    }
    anyhow::ensure!(bytes.len() as u64 <= OUTPUT_MAX, "it printed more than {OUTPUT_MAX} bytes");
    Ok(bytes)
}

/// Whether a name from a configuration is a mere file name, and no path.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
}

/// Text of others, short enough for a message and on one line.
pub(crate) fn brief(text: &str) -> String {
    format!("{:?}", text.chars().take(SHOWN_MAX).collect::<String>())
}
