//! `sluice status`: what is mounted on this node, and how much of it is here.

use std::process::ExitCode;

use clap::Args;
use proto::read_trace::ChunkClass;
use proto::{NodeImage, ReadTrace, StatusReply};
use serde::Serialize;

use super::Context;
use crate::render;

/// Show what is mounted on this node and how much of it is here
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// With --json: also what was read since each mount, and what waited
    #[arg(long, requires = "json")]
    reads: bool,
}

/// `--json`.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    pub images: Vec<Image>,
    pub disk_bytes: u64,
    pub disk_budget: u64,
    /// Compressed bytes that came over the network since the node started.
    pub received_bytes: u64,
    pub resident_bytes: u64,
    /// What the node keeps within; without the services that one process may run beside it.
    pub memory_budget: u64,
    /// Whether images that containerd pulls from now on may stream.
    pub streaming: bool,
}

#[derive(Debug, Serialize)]
pub struct Image {
    pub reference: String,
    pub manifest_digest: String,
    pub mounts: Vec<String>,
    pub complete: bool,
    pub objects_total: u64,
    pub objects_local: u64,
    pub bytes_total: u64,
    pub bytes_local: u64,
    pub received_bytes: u64,
    pub demand_bytes: u64,
    pub prefetch_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<Read>,
}

/// A chunk's arrival.
#[derive(Clone, Debug, Serialize)]
pub struct Read {
    /// Seconds since the mount was asked for.
    pub at: f64,
    pub took: f64,
    pub chunk: String,
    pub stored_bytes: u32,
    /// `demand`, `prefetch` or `background`.
    pub class: &'static str,
    /// Reads that were waiting for it.
    pub waiters: u32,
}

pub async fn run(context: &Context, args: StatusArgs) -> anyhow::Result<ExitCode> {
    let mut node = context.running_node().await?;
    let status = NodeStatus::from(node.status(args.reads).await?);
    match context.global.json {
        true => render::json(&status)?,
        false => render::line(describe(&status).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

impl From<StatusReply> for NodeStatus {
    fn from(reply: StatusReply) -> NodeStatus {
        NodeStatus {
            images: reply.images.into_iter().map(Image::from).collect(),
            disk_bytes: reply.disk_bytes,
            disk_budget: reply.disk_budget,
            received_bytes: reply.received_bytes,
            resident_bytes: reply.resident_bytes,
            memory_budget: reply.memory_budget,
            streaming: reply.streaming,
        }
    }
}

impl From<NodeImage> for Image {
    fn from(image: NodeImage) -> Image {
        let progress = image.progress.unwrap_or_default();
        Image {
            reference: image.reference,
            manifest_digest: image.manifest_digest,
            mounts: image.mounts,
            complete: progress.complete,
            objects_total: progress.objects_total,
            objects_local: progress.objects_local,
            bytes_total: progress.bytes_total,
            bytes_local: progress.bytes_local,
            received_bytes: progress.received_bytes,
            demand_bytes: progress.demand_bytes,
            prefetch_bytes: progress.prefetch_bytes,
            reads: image.trace.iter().map(Read::from).collect(),
        }
    }
}

impl From<&ReadTrace> for Read {
    fn from(read: &ReadTrace) -> Read {
        Read {
            at: read.at_us as f64 / 1e6,
            took: read.took_us as f64 / 1e6,
            chunk: hex::encode(&read.chunk),
            stored_bytes: read.stored_bytes,
            class: match read.class() {
                ChunkClass::Demand => "demand",
                ChunkClass::Prefetch => "prefetch",
                ChunkClass::Background => "background",
            },
            waiters: read.waiters,
        }
    }
}

fn describe(status: &NodeStatus) -> String {
    let header = ["image", "manifest", "here", "size", "mounted at"];
    let table = render::table(&header, &[2, 3], status.images.iter().map(row).collect());
    let budget = match status.disk_budget {
        0 => String::new(),
        budget => format!(" of {}", render::bytes(budget)),
    };
    let switch = match status.streaming {
        true => "",
        false => "\nswitched off (frontend.streaming): what containerd pulls from now on does not stream",
    };
    format!(
        "{table}\ndisk {}{budget}, received {}, memory {} (budget of a frontend: {}){switch}",
        render::bytes(status.disk_bytes),
        render::bytes(status.received_bytes),
        render::bytes(status.resident_bytes),
        render::bytes(status.memory_budget)
    )
}

fn row(image: &Image) -> Vec<String> {
    let here = match image.complete {
        true => "all".to_owned(),
        // Rounded down: 100% would say that nothing is missing.
        false => {
            let percent = image.bytes_local.saturating_mul(100).checked_div(image.bytes_total);
            format!("{}%", percent.unwrap_or(0).min(99))
        }
    };
    vec![
        image.reference.clone(),
        render::short(&image.manifest_digest).to_owned(),
        here,
        render::bytes(image.bytes_total),
        image.mounts.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use proto::DownloadProgress;

    use super::*;

    #[test]
    fn an_incomplete_image_is_never_shown_as_whole() {
        let progress = |complete| DownloadProgress {
            bytes_total: 1_000,
            bytes_local: 999 + u64::from(complete),
            complete,
            ..DownloadProgress::default()
        };
        let here = |complete| {
            let progress = Some(progress(complete));
            row(&Image::from(NodeImage { progress, ..NodeImage::default() }))[2].clone()
        };
        assert_eq!(here(false), "99%");
        assert_eq!(here(true), "all");
        assert_eq!(row(&Image::from(NodeImage::default()))[2], "0%");
    }
}
