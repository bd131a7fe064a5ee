//! The node's frontend, over its unix socket; and a way to have one when none runs.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use proto::mount_event;
use proto::node_client::NodeClient;
use proto::{
    CompleteRequest, Event, EventsRequest, EvictReply, EvictRequest, MountRequest, Mounted, StatusReply,
    StatusRequest, UnmountRequest,
};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::args::Global;
use crate::exit;
use crate::progress::Progress;
use crate::settings::{self, Settings};

/// How long a node that was just started may take to answer.
const START: Duration = Duration::from_secs(30);
/// How often it is asked meanwhile.
const START_POLL: Duration = Duration::from_millis(10);
/// Lines of the node's log that are shown when it does not start.
const LOG_LINES: usize = 12;
/// A node that was started for a mount ends when it had nothing to do for this long.
pub const IDLE_EXIT: Duration = Duration::from_secs(60);
/// A status holds the trace of every image: far more than tonic's default of 4 MiB.
const MESSAGE_MAX: usize = 256 * 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Node {
    client: NodeClient<Channel>,
}

impl Node {
    /// Speaks to the frontend on `socket`.
    pub async fn connect(socket: &Path) -> anyhow::Result<Node> {
        let path = socket.to_owned();
        let dial = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is not used: the connector knows the socket.
        let channel = Endpoint::from_static("http://node")
            .connect_with_connector(dial)
            .await
            .with_context(|| format!("no node answers on {}", socket.display()))?;
        Ok(Node { client: NodeClient::new(channel).max_decoding_message_size(MESSAGE_MAX) })
    }

    /// The frontend that runs, or one that is started in the background.
    pub async fn ensure(global: &Global, settings: &Settings, progress: &Progress) -> anyhow::Result<Node> {
        let socket = settings.node_socket();
        match Node::connect(socket).await {
            Ok(node) => {
                if !global.set.is_empty() {
                    progress.note("a node runs already, with the settings that it was started with: what --set says of it is not used");
                }
                Ok(node)
            }
            Err(error) if global.node.is_some() || settings.nats.is_some() => Err(error.context(
                "start a frontend on this node, or leave out --node and --nats to use an embedded one",
            )),
            Err(_) => start(global, settings, socket, progress).await,
        }
    }

    /// Mounts, showing the import if there is one. Returns when the mount can be used.
    pub async fn mount(&mut self, request: MountRequest, progress: &mut Progress) -> Result<Mounted, Status> {
        let mut events = self.client.mount(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            match event.event {
                Some(mount_event::Event::Importing(ticket)) => progress.importing(ticket.progress.as_ref()),
                Some(mount_event::Event::Mounted(mounted)) => {
                    progress.finish();
                    return Ok(mounted);
                }
                None => {}
            }
        }
        Err(Status::internal("the frontend ended the mount without a result"))
    }

    pub async fn unmount(&mut self, target: &Path) -> Result<(), Status> {
        let target = target.display().to_string();
        self.client.unmount(UnmountRequest { target }).await.map(|_| ())
    }

    /// Waits until all of the image is on this node.
    pub async fn complete(&mut self, manifest_digest: &str, progress: &mut Progress) -> Result<(), Status> {
        let request = CompleteRequest { manifest_digest: manifest_digest.to_owned() };
        let mut updates = self.client.complete(request).await?.into_inner();
        let mut complete = false;
        while let Some(update) = updates.message().await? {
            progress.downloading(&update);
            complete = update.complete;
        }
        progress.finish();
        match complete {
            true => Ok(()),
            false => Err(Status::aborted("the image was taken off the node before it was complete")),
        }
    }

    pub async fn status(&mut self, reads: bool) -> Result<StatusReply, Status> {
        Ok(self.client.status(StatusRequest { reads }).await?.into_inner())
    }

    /// The newest events of this node; with `follow` also those to come.
    pub async fn events(&mut self, follow: bool) -> Result<Streaming<Event>, Status> {
        Ok(self.client.events(EventsRequest { follow }).await?.into_inner())
    }

    pub async fn evict(&mut self, image: &str) -> Result<EvictReply, Status> {
        Ok(self.client.evict(EvictRequest { image: image.to_owned() }).await?.into_inner())
    }
}

/// Starts `sluice serve` as a process of its own that outlives this one, and waits until it answers.
async fn start(
    global: &Global,
    settings: &Settings,
    socket: &Path,
    progress: &Progress,
) -> anyhow::Result<Node> {
    crate::commands::require_root("start a node")?;
    make_state(&settings.state)?;
    let log = log_file(&settings.state);
    let (output, begins) = match File::options().create(true).append(true).mode(0o600).open(&log) {
        Ok(output) => {
            progress.note(&format!("starting a node in the background (log: {})", log.display()));
            let begins = output.metadata().map_or(0, |log| log.len());
            (output, begins)
        }
        // A full disk has no room for a log, but for what is there already a node serves it all the same.
        Err(error) => {
            progress.note(&format!(
                "starting a node in the background, without a log: {}: {error}",
                log.display()
            ));
            (File::options().write(true).open("/dev/null").context("open /dev/null")?, 0)
        }
    };
    let program = std::env::current_exe().context("find this program")?;
    let idle_exit = humantime::format_duration(IDLE_EXIT).to_string();
    let mut serve = std::process::Command::new(program)
        .args(settings::flags(global)?)
        .args(["serve", "--detached", "--idle-exit", &idle_exit])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("start a node in the background")?;
    let deadline = Instant::now() + START;
    loop {
        // Asked after it ended as well: another command may have started one at the same moment, which is waited for.
        let failed = serve.try_wait()?.is_some_and(|ended| ended.code() != Some(exit::IN_USE.into()));
        match Node::connect(socket).await {
            Ok(node) => return Ok(node),
            Err(_) if failed => bail!("the node did not start:\n{}", last_lines(&log, begins)),
            Err(error) if Instant::now() > deadline => return Err(error.context("the node does not answer")),
            Err(_) => tokio::time::sleep(START_POLL).await,
        }
    }
}

/// The state folder holds keys, sockets and images: its owner's only.
pub fn make_state(state: &Path) -> anyhow::Result<()> {
    lifecycle::private::make(state).with_context(|| format!("create the state folder {}", state.display()))
}

/// Where a node in the background logs, unless `lifecycle.log.file` says otherwise.
pub fn log_file(state: &Path) -> PathBuf {
    state.join("serve.log")
}

/// Of what was logged since the node was started.
fn last_lines(log: &Path, begins: u64) -> String {
    let read = || {
        let mut file = File::open(log)?;
        if begins <= file.metadata()?.len() {
            file.seek(SeekFrom::Start(begins))?;
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map(|_| text)
    };
    let text: std::io::Result<Vec<u8>> = read();
    let text = text.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "its log could not be written; `sluice serve` in a terminal says why".to_owned();
    }
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
