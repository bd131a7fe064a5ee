//! `sluice events`: what happened, on this node or in the whole mesh.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;
use futures::StreamExt;
use names::{ImageName, Reference};
use proto::{Event, EventKind};
use serde::Serialize;

use super::Context;
use crate::{render, session};

/// Show what happened to images on this node: which stream, which do not and why, what went wrong
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice events                                  the newest events of this node, the oldest first
  sluice events --follow --kind fallback,denied  every image that is pulled the ordinary way, as it happens
  sluice events --mesh --json                    one JSON object a line, of all nodes and services, from now on

What each kind and its reasons mean: docs/events.md")]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(long, short)]
    follow: bool,
    /// Listen to all nodes and services on the NATS server of the settings, instead of asking this node; implies --follow
    #[arg(long)]
    mesh: bool,
    /// Only these kinds, separated by commas: streaming, complete, fallback, denied, quota, degraded, policy-failed, policy-set
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    kind: Vec<EventKind>,
    /// Only what concerns this image: a reference, in full or from some part on (debian:12), or a manifest digest
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
}

/// `--json`, one a line.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    id: &'a str,
    /// RFC 3339, in UTC.
    at: String,
    kind: &'static str,
    warning: bool,
    reason: &'a str,
    message: &'a str,
    service: &'a str,
    node: &'a str,
    image: &'a str,
    manifest_digest: &'a str,
    /// How often it happened since the event before of this kind, reason and image.
    count: u64,
    details: BTreeMap<&'a str, &'a str>,
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
    let details = event.details.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Ok(serde_json::to_string(&Shown {
        id: &event.id,
        at: at(event),
        kind: event.kind().code(),
        warning: event.is_warning(),
        reason: &event.reason,
        message: &event.message,
        service: &event.service,
        node: &event.node,
        image: &event.image,
        manifest_digest: &event.manifest_digest,
        count: event.count,
        details,
    })?)
}

fn as_text(event: &Event) -> String {
    let times = if event.count > 1 { format!(" ({} times)", event.count) } else { String::new() };
    let image = if event.image.is_empty() { &event.manifest_digest } else { &event.image };
    let image = if image.is_empty() { String::new() } else { format!("{image}: ") };
    let node = if event.node.is_empty() { &event.service } else { &event.node };
    let (at, kind, reason) = (at(event), event.kind().code(), &event.reason);
    // Names and messages come from images and plugins: nothing in them may steer a terminal.
    render::printable(&format!("{at}  {node}  {kind}  {reason}  {image}{}{times}", event.message))
}

fn at(event: &Event) -> String {
    // A time that no calendar has is shown as the first one.
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(event.at_ms.min(MILLISECONDS_MAX)));
    humantime::format_rfc3339_millis(at.unwrap_or(UNIX_EPOCH)).to_string()
}

/// The last millisecond of the year 9999: RFC 3339 has no later one.
const MILLISECONDS_MAX: u64 = 253_402_300_799_999;

fn kind(text: &str) -> Result<EventKind, String> {
    EventKind::from_code(text).ok_or_else(|| {
        "streaming, complete, fallback, denied, quota, degraded, policy-failed or policy-set expected"
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
        ] {
            assert_eq!(kind(code).unwrap().code(), code);
        }
        assert!(kind("steaming").is_err());
    }
}
