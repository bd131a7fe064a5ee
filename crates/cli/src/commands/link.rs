//! `sluice link`: a simulated network link as a process of its own, for tests and experiments.
//!
//! Prints `listening ADDRESS`, then obeys lines on standard input: `stall`, `resume`, `cut`, `counters`; each is
//! answered by one line. The end of the input changes nothing.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;

use crate::link::{Bandwidth, Carriers, Link, Nic, Shape};
use crate::render;

/// Carry TCP connections through a simulated link
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// Where to listen; port 0 picks one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where connections go
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    #[command(flatten)]
    shape: ShapeArgs,
}

/// The simulated link's properties; also of `compare`.
#[derive(Clone, Copy, Debug, Args)]
pub struct ShapeArgs {
    /// Round-trip time of the simulated link
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = humantime::parse_duration)]
    rtt: Duration,
    /// Bandwidth of the simulated link in each direction [default: unlimited]
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Bandwidth>,
}

impl ShapeArgs {
    pub fn shape(self) -> Shape {
        Shape { rtt: self.rtt, bandwidth: self.bandwidth }
    }
}

pub async fn run(args: LinkArgs) -> anyhow::Result<ExitCode> {
    let carriers = Carriers::new()?;
    let link = Link::start(&carriers, Nic::new(args.shape.shape()), args.listen)?;
    link.lead_to(args.to);
    render::line(&format!("listening {}", link.address()))?;
    let mut caught = crate::runtime::signals::Caught::new()?;
    tokio::select! {
        result = obey(&link) => result.map(|()| ExitCode::SUCCESS),
        _ = caught.next() => Ok(ExitCode::SUCCESS),
    }
}

async fn obey(link: &Link) -> anyhow::Result<()> {
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        if render::is_unread() {
            return Ok(());
        }
        match line.trim() {
            "stall" => link.stall(),
            "resume" => link.resume(),
            "cut" => link.cut(),
            "counters" => {
                render::line(&serde_json::to_string(&link.counters())?)?;
                continue;
            }
            other => {
                render::line(&format!("unknown: {other} (stall, resume, cut and counters are known)"))?;
                continue;
            }
        }
        render::line("ok")?;
    }
    std::future::pending().await
}

/// The lines of standard input. Read by a thread of its own, which may block until the process ends.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
