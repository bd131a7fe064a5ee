//! `sluice import`: makes images streamable.

use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Args;
use image::ImageRecord;
use lifecycle::signals::Signals;
use proto::{ImportSummary, Resolved};
use serde::Serialize;

use super::Context;
use crate::exit::{ExitWith, INTERRUPTED};
use crate::render;
use crate::session::Session;

/// Make images streamable: read their layers once, into the store
///
/// Layers that the store knows from other images are not downloaded again; an import that was interrupted goes on
/// where it stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice import debian:12 nginx:1.27
  sluice import oci:build/app:latest
  sluice import --verify debian:12        check what the store holds, and repair it
  echo $TOKEN | sluice import --username me --password-stdin ghcr.io/org/app:1")]
pub struct ImportArgs {
    /// Registry references, oci:DIR[:TAG] or docker-archive:FILE
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Read back everything that the store holds of the image; repair what is missing or corrupt
    #[arg(long)]
    verify: bool,
}

/// `--json`.
#[derive(Debug, Serialize)]
struct Results {
    images: Vec<Imported>,
}

#[derive(Debug, Serialize)]
pub struct Imported {
    pub reference: String,
    pub manifest_digest: String,
    pub files: u64,
    pub layers: usize,
    /// Of all distinct files.
    pub plain_bytes: u64,
    /// Of all distinct chunks.
    pub stored_bytes: u64,
    /// False: the image was imported before, and nothing was read.
    pub imported: bool,
    #[serde(flatten)]
    pub summary: Summary,
}

/// What one import did; zeros when there was nothing to do.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Summary {
    pub layers_read: u32,
    pub layers_known: u32,
    /// Of the blobs that were read.
    pub compressed_bytes_read: u64,
    /// Of the layers' archives that were read.
    pub plain_bytes_read: u64,
    pub chunks_written: u64,
    pub chunks_present: u64,
    pub seconds: f64,
}

impl From<ImportSummary> for Summary {
    fn from(summary: ImportSummary) -> Summary {
        Summary {
            layers_read: summary.layers_read,
            layers_known: summary.layers_known,
            compressed_bytes_read: summary.compressed_bytes,
            plain_bytes_read: summary.plain_bytes,
            chunks_written: summary.chunks_written,
            chunks_present: summary.chunks_present,
            seconds: summary.milliseconds as f64 / 1_000.0,
        }
    }
}

pub async fn run(context: &Context, args: ImportArgs) -> anyhow::Result<ExitCode> {
    let session = context.judging_session().await?;
    // Not before: until a service answers there is nothing to withdraw, and ctrl-C ends the wait for one.
    let mut signals = Signals::register()?;
    let outcome = tokio::select! {
        outcome = import(context, &session, &args) => outcome,
        signal = signals.next() => Err(interrupted(signal)),
    };
    // In any case: while an import seems to run, nobody can collect what the store need not keep.
    session.close().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn import(context: &Context, session: &Session, args: &ImportArgs) -> anyhow::Result<()> {
    let requests = context.requests()?;
    let mut progress = context.progress();
    let mut results = Results { images: Vec::new() };
    for image in &args.images {
        let mut request = requests.resolve(image).await?;
        request.verify = args.verify;
        let resolved =
            session.import(request, &mut progress).await.with_context(|| format!("import {image}"))?;
        progress.finish();
        let imported = imported(image, &resolved)?;
        if !context.global.json && !context.global.quiet {
            render::line(&sentence(&imported))?;
        }
        results.images.push(imported);
    }
    if context.global.json {
        render::json(&results)?;
    }
    Ok(())
}

fn interrupted(signal: &str) -> anyhow::Error {
    let source =
        anyhow!("{signal}: stopped; what is in the store stays, and the next import goes on from there");
    ExitWith { code: INTERRUPTED, source }.into()
}

pub(crate) fn imported(image: &str, resolved: &Resolved) -> anyhow::Result<Imported> {
    let record = record(resolved)?;
    Ok(Imported {
        reference: image.to_owned(),
        manifest_digest: record.manifest_digest,
        files: record.files,
        plain_bytes: record.plain_bytes,
        stored_bytes: record.stored_bytes,
        layers: record.layers.len(),
        imported: resolved.imported.is_some(),
        summary: resolved.imported.map(Summary::from).unwrap_or_default(),
    })
}

pub(crate) fn record(resolved: &Resolved) -> anyhow::Result<ImageRecord> {
    let signed = resolved.record.as_ref().context("the fetcher answered without a record")?;
    ImageRecord::decode(&signed.payload).context("read the image's record")
}

fn sentence(image: &Imported) -> String {
    let size = format!(
        "{} files, {} ({} stored)",
        image.files,
        render::bytes(image.plain_bytes),
        render::bytes(image.stored_bytes)
    );
    let Summary { seconds, layers_read, layers_known, .. } = image.summary;
    let how = match image.imported {
        false => "known".to_owned(),
        true => format!("imported in {seconds:.1} s (layers: {layers_read} read, {layers_known} known)"),
    };
    format!("{}  {}  {size}, {how}", image.manifest_digest, image.reference)
}
