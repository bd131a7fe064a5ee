//! `sluice events`: what happened, on this node or in the whole mesh.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use bus::cloud::{self, EventJson};
use clap::Args;
use futures::StreamExt;
use names::{ImageName, Reference};
use proto::{Event, EventKind};

use super::Context;
use crate::{render, session};

/// Show what happened to images on this node: which stream, which do not and why, what went wrong
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice events                                  the newest events of this node, the oldest first
  sluice events --follow --kind fallback,denied  every image that is pulled the ordinary way, as it happens
  sluice events --follow --mesh --json           one JSON object a line, of all nodes and services, from now on

What each kind and its reasons mean: docs/events.md")]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(long, short)]
    follow: bool,
    /// Listen to all nodes and services on the NATS server of the settings, instead of asking this node; implies --follow
    #[arg(long)]
    mesh: bool,
    /// Only these kinds, separated by commas: streaming, complete, importing, fallback, denied, quota, degraded, unjudged,
    /// policy-failed, policy-set
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    kind: Vec<EventKind>,
    /// Only what concerns this image: a reference, in full or from some part on (debian:12), or a manifest digest
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
}

pub async fn run(context: &Context, mut args: EventsArgs) -> anyhow::Result<ExitCode> {
    let here = std::env::current_dir().context("find the working folder")?;
    args.image = args.image.map(|image| ImageName::absolute(&image, &here));
    let print = |event: &Event| match args.wants(event) {
        true => render::line(&if context.global.json { as_json(event)? } else { as_text(event) }),
        false => Ok(()),
    };
    if args.mesh {
        let Some(nats) = &context.settings.nats else {
            bail!("--mesh listens on NATS: name the server with --nats, or in the settings (nats.url)");
        };
        let bus = session::connect(nats).await?;
        let mut events = bus.listen_to_events().await?;
        while let (false, Some(event)) = (render::is_unread(), events.next().await) {
            print(&event)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut events = context.running_node().await?.events(args.follow).await?;
    while let (false, Some(event)) = (render::is_unread(), events.message().await?) {
        print(&event)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl EventsArgs {
    fn wants(&self, event: &Event) -> bool {
        let of_kind = self.kind.is_empty() || self.kind.contains(&event.kind());
        of_kind && self.image.as_ref().is_none_or(|image| names(image, event))
    }
}

/// Whether this is what a user calls the event's image.
fn names(image: &str, event: &Event) -> bool {
    let is = |name: &str| name == image || name.strip_suffix(image).is_some_and(|head| head.ends_with('/'));
    // What was asked for by its digest is found by its tag as well.
    let as_asked = Reference::parse(&event.image).map(|name| name.as_asked().to_string());
    image == event.manifest_digest || is(&event.image) || as_asked.is_some_and(|name| is(&name))
}

fn as_json(event: &Event) -> anyhow::Result<String> {
    Ok(serde_json::to_string(&EventJson::from(event))?)
}

fn as_text(event: &Event) -> String {
    let times = if event.count > 1 { format!(" ({} times)", event.count) } else { String::new() };
    let image = if event.image.is_empty() { &event.manifest_digest } else { &event.image };
    let image = if image.is_empty() { String::new() } else { format!("{image}: ") };
    let node = if event.node.is_empty() { &event.service } else { &event.node };
    let (at, kind, reason) = (cloud::time(event), event.kind().code(), &event.reason);
    // Names and messages come from images and plugins: nothing in them may steer a terminal.
    render::printable(&format!("{at}  {node}  {kind}  {reason}  {image}{}{times}", event.message))
}

fn kind(text: &str) -> Result<EventKind, String> {
    EventKind::from_code(text).ok_or_else(|| {
        "streaming, complete, importing, fallback, denied, quota, degraded, unjudged, policy-failed or policy-set expected"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let event = Event::new(EventKind::Fallback, "no-annotations", "set it\x1b[31m");
        Event { node: "node-1".to_owned(), image: "debian:12".to_owned(), at_ms: 1_000, count: 3, ..event }
    }

    #[test]
    fn a_line_says_when_where_what_and_why_and_steers_no_terminal() {
        assert_eq!(
            as_text(&event()),
            "1970-01-01T00:00:01.000Z  node-1  fallback  no-annotations  debian:12: set it\\u{1b}[31m (3 times)"
        );
        assert!(as_text(&Event { at_ms: u64::MAX, ..event() }).starts_with("9999-12-31T23:59:59.999Z"));
    }

    #[test]
    fn filters_hold_together() {
        let args = |kind: &[EventKind], image: Option<&str>| EventsArgs {
            follow: false,
            mesh: false,
            kind: kind.to_vec(),
            image: image.map(str::to_owned),
        };
        assert!(args(&[], None).wants(&event()));
        assert!(args(&[EventKind::Fallback], Some("debian:12")).wants(&event()));
        assert!(!args(&[EventKind::Denied], Some("debian:12")).wants(&event()));
        assert!(!args(&[], Some("debian:11")).wants(&event()));
        let full =
            Event { image: format!("docker.io/library/debian:12@sha256:{}", "ab".repeat(32)), ..event() };
        for image in ["debian:12", "library/debian:12", "docker.io/library/debian:12", &full.image] {
            assert!(args(&[], Some(image)).wants(&full), "{image}");
        }
        assert!(!args(&[], Some("ian:12")).wants(&full), "whole parts only");
    }

    #[test]
    fn every_kind_can_be_asked_for_by_its_code() {
        for code in [
            "streaming",
            "complete",
            "fallback",
            "denied",
            "quota",
            "degraded",
            "policy-failed",
            "policy-set",
            "importing",
            "unjudged",
        ] {
            assert_eq!(kind(code).unwrap().code(), code);
        }
        assert!(kind("steaming").is_err());
    }
}
