//! `sluice revoke`: what was given counts no more.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto::revocation::Scope;
use proto::{Revocation, RevokeRequest};

use super::Context;
use crate::render;
use crate::session;

/// Revoke what a node, an image or a project was given; it takes effect within a minute everywhere
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  sluice revoke node worker-1                   a node that was stolen
  sluice revoke node worker-1 --undo
  sluice revoke image debian:12 --project team-a
  sluice revoke project team-a                  every grant of a project

`sluice keys revoke` takes a node's identity as well.")]
pub enum RevokeCommand {
    Node(NodeArgs),
    Image(ImageArgs),
    Project(ProjectArgs),
    /// Accept the list of what was revoked as it stands in a store that was restored from a backup: what was revoked since is revoked no more
    Restored,
}

/// A node is given nothing more, and served nothing, until that is undone: in all projects, or in the one that --project names
#[derive(Debug, Args)]
pub struct NodeArgs {
    name: String,
    /// Let it back in
    #[arg(long)]
    undo: bool,
}

/// What nodes were given for an image counts no more: who pulls it again, and whom the registry lets, gets a new grant
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// A reference as it was imported, or a manifest digest
    image: String,
}

/// The same for all images of a project
#[derive(Debug, Args)]
pub struct ProjectArgs {
    name: String,
}

pub async fn run(context: &Context, command: RevokeCommand) -> anyhow::Result<ExitCode> {
    let request = request(context, command).await?;
    let done = match (request.undo, request.restored) {
        (true, _) => "undone",
        (false, true) => "accepted",
        (false, false) => "revoked",
    };
    let session = context.session().await?.with_context(|| super::no_store(context))?;
    let reply = session.call(request, session::ASK).await.context("revoke")?;
    match context.global.json {
        true => render::json(&serde_json::json!({ "epoch": reply.epoch }))?,
        false => render::line(done)?,
    }
    session.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn request(context: &Context, command: RevokeCommand) -> anyhow::Result<RevokeRequest> {
    let (scope, project, name, undo) = match command {
        RevokeCommand::Restored => return Ok(RevokeRequest { restored: true, ..RevokeRequest::default() }),
        RevokeCommand::Node(NodeArgs { name, undo }) => {
            (Scope::Node, context.global.project.clone().unwrap_or_default(), name, undo)
        }
        RevokeCommand::Image(ImageArgs { image }) => {
            let name = context.requests()?.resolve(&image).await?.reference;
            (Scope::Image, context.settings.project.to_string(), name, false)
        }
        RevokeCommand::Project(ProjectArgs { name }) => (Scope::Project, name, String::new(), false),
    };
    let revocation = Revocation { scope: scope.into(), project, name, ..Revocation::default() };
    Ok(RevokeRequest { revocation: Some(revocation), undo, restored: false })
}
