//! `sluice run --detach`: a process of its own attends to the container, as the one in the foreground would.
//!
//! ```text
//! sluice run --detach --starts--> sluice-attendant run --detach     the same words, in a session of its own
//!                     <--the container's name, or the end of output--
//! ```

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::exit::RUN_FAILED;
use crate::render;
use crate::runtime::signals::Caught;

/// What the attendant is called; it is the same program.
const NAME: &str = "sluice-attendant";

/// Whether this process attends to a container that somebody else asked for.
pub(super) fn is_attendant() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// Starts an attendant with this command line, and waits until its container runs.
pub(super) async fn start() -> anyhow::Result<Started> {
    let mut caught = Caught::new()?;
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg0(NAME).args(std::env::args_os().skip(1)).stdin(Stdio::null()).stdout(Stdio::piped());
    let attendant = command.spawn().context("start a process that attends to the container")?;
    let pid = Pid::from_child(&attendant);
    let waiting = tokio::task::spawn_blocking(move || first_line(attendant));
    tokio::pin!(waiting);
    loop {
        tokio::select! {
            started = &mut waiting => return started.context("wait for the container's start")?,
            // It cleans up and says so.
            _ = caught.next() => kill_process(pid, Signal::TERM).context("end what attends to the container")?,
        }
    }
}

/// What became of an attendant.
#[derive(Debug)]
pub(super) enum Started {
    /// The container of this name runs.
    Running(String),
    /// The attendant has said why not, and ended with this code.
    Failed(ExitCode),
}

fn first_line(mut attendant: Child) -> anyhow::Result<Started> {
    let mut line = String::new();
    let output = attendant.stdout.take().context("the attendant has no output")?;
    BufReader::new(output).read_line(&mut line).context("read what the attendant says")?;
    match line.trim() {
        "" => {
            let status = attendant.wait().context("wait for the attendant")?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(RUN_FAILED);
            Ok(Started::Failed(ExitCode::from(code)))
        }
        name => Ok(Started::Running(name.to_owned())),
    }
}

/// Leaves the session of whoever asked for the container.
pub(super) fn leave_session() -> anyhow::Result<()> {
    rustix::process::setsid().context("leave the caller's session").map(drop)
}

/// Tells whoever asked that the container `id` runs. From here on nobody listens: what there is to say goes to `log`.
pub(super) fn report(id: &str, log: &Path) -> anyhow::Result<()> {
    render::line(id)?;
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("open {}", log.display()))?;
    rustix::stdio::dup2_stdout(&file)?;
    rustix::stdio::dup2_stderr(&file)?;
    std::env::set_current_dir("/").context("leave the caller's folder")
}
