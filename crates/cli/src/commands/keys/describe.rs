//! What `sluice keys` prints.

use identity::{Entry, Kind, Set};
use serde::Serialize;

use crate::args::Global;
use crate::render;

/// `--json` of `show` and `init`.
#[derive(Debug, Serialize)]
struct Shown {
    mesh: String,
    /// Of the certificate authority: SHA-256, in hex.
    fingerprint: String,
    /// Of the fetcher: what nodes and caches believe.
    trusted_keys: Vec<String>,
    identities: Vec<Entry>,
}

pub(super) fn show(global: &Global, set: &Set) -> anyhow::Result<()> {
    let shown = Shown {
        mesh: set.name().to_owned(),
        fingerprint: set.fingerprint()?,
        trusted_keys: vec![set.trusted_key()?],
        identities: set.entries()?,
    };
    if global.json {
        return render::json(&shown);
    }
    let now = render::now_unix();
    let rows = shown.identities.iter().map(|entry| row(entry, now)).collect();
    render::line(&format!("mesh {}", shown.mesh))?;
    render::line(&format!("authority {}", shown.fingerprint))?;
    render::line(&format!("fetcher {}\n", shown.trusted_keys.join(", ")))?;
    render::print(render::table(&["name", "kind", "projects", "until"], &[], rows).as_bytes())
}

fn row(entry: &Entry, now: u64) -> Vec<String> {
    let kind = match entry.kind {
        Kind::Service => "service",
        Kind::Operator => "operator",
        Kind::Node => "node",
    };
    let until = match entry.revoked_unix {
        Some(since) => format!("revoked {}", render::age(since, now)),
        None if entry.expires_unix <= now => format!("over {}", render::age(entry.expires_unix, now)),
        None => {
            let hours = (entry.expires_unix - now) / 3_600;
            if hours >= 48 { format!("{} days", hours / 24) } else { format!("{hours} hours") }
        }
    };
    vec![entry.name.clone(), kind.to_owned(), entry.projects.join(","), until]
}

/// After `init`: what there is now, and what comes next.
pub(super) fn made(global: &Global, set: &Set) -> anyhow::Result<()> {
    if global.json {
        return show(global, set);
    }
    let folder = set.folder().display();
    render::line(&format!(
        "{folder} holds the keys of mesh {name}. Keep it, and {folder}/keys above all, to yourself.\n\n\
         nats-server -c {folder}/nats/nats-server.conf\n\
         sluice   --config {folder}/serve.toml serve                all services in one process, or each by itself:\n\
         fetcher  --config {folder}/services/fetcher/fetcher.toml   (and cache, policy, quota, events, identity alike)\n\
         sluice   --config {folder}/operators/operator/sluice.toml check --mesh\n\
         sluice keys token {folder} --for-node NAME                 lets a node in: docs/access.md",
        name = set.name()
    ))
}
