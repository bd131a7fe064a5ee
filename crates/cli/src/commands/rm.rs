//! `sluice rm`: forgets images.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use proto::RemoveRequest;

use super::Context;
use crate::render;
use crate::session;

/// Forget an image; `sluice gc` then frees what no other image needs
#[derive(Debug, Args)]
pub struct RmArgs {
    /// References as imported, or manifest digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also a record that is not believed, named by its digest: of an image or a layer that a fetcher with another key stored
    #[arg(long)]
    force: bool,
}

pub async fn run(context: &Context, args: RmArgs) -> anyhow::Result<ExitCode> {
    let requests = context.requests()?;
    let session = context.session().await?.with_context(|| super::no_store(context))?;
    let mut removed = Vec::new();
    for image in &args.images {
        let request = RemoveRequest {
            project: context.settings.project.to_string(),
            image: requests.resolve(image)?.reference,
            force: args.force,
        };
        let reply = session.call(request, session::ASK).await.with_context(|| format!("remove {image}"))?;
        removed.extend(reply.manifest_digests);
    }
    match context.global.json {
        true => render::json(&removed)?,
        false => removed.iter().try_for_each(|digest| render::line(digest))?,
    }
    session.close().await;
    Ok(ExitCode::SUCCESS)
}
