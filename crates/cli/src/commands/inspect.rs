//! `sluice inspect`: what an image is, whether it can stream, whether it is imported.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use proto::{Decision, InspectLayer, InspectReply, Verdict};
use serde::Serialize;

use super::Context;
use crate::render;

/// Show an image's layers and sizes, and whether it can stream
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice inspect debian:12
  sluice inspect --json oci:build/app | jq .ineligible

Exit code 3 when the image cannot be streamed.")]
pub struct InspectArgs {
    /// A registry reference, oci:DIR[:TAG] or docker-archive:FILE
    image: String,
}

/// `--json`.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub reference: String,
    pub manifest_digest: String,
    pub manifest_media_type: String,
    pub config_digest: String,
    pub platform: String,
    pub layers: Vec<Layer>,
    /// Of the blobs of all distinct layers, in bytes.
    pub compressed_bytes: u64,
    /// Why the image cannot stream; empty: it can.
    pub ineligible: Vec<String>,
    /// What each policy says.
    pub policies: Vec<Policy>,
    /// Absent: not imported yet.
    pub image: Option<super::ls::Image>,
    pub starts: Starts,
}

/// What is known of the image's starts.
#[derive(Debug, Serialize)]
pub struct Starts {
    pub reported: u32,
    /// That the next start is expected to read.
    pub chunks: u32,
    /// Of those, stored as small as they get.
    pub recompressed: u32,
}

/// One policy's verdict.
#[derive(Debug, Serialize)]
pub struct Policy {
    pub policy: String,
    pub version: String,
    /// Of the plugin.
    pub digest: String,
    /// `accept`, `refuse` or `abstain`; after a failure what the policy's failure rule says.
    pub decision: &'static str,
    pub reason: String,
    pub message: String,
    pub details: BTreeMap<String, String>,
    /// It has no say.
    pub monitored: bool,
    /// The kind of failure; absent: the policy itself decided.
    pub failure: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Layer {
    pub digest: String,
    pub media_type: String,
    pub size: u64,
    pub diff_id: String,
    pub empty: bool,
    pub duplicate: bool,
    pub encrypted: bool,
    /// The store has its record: an import would not download it.
    pub known: bool,
}

pub async fn run(context: &Context, args: InspectArgs) -> anyhow::Result<ExitCode> {
    let request = context.requests()?.inspect(&args.image).await?;
    let session = context.judging_session().await?;
    let reply = session.inspect(request).await;
    let inspection = Inspection::from(reply.with_context(|| format!("inspect {}", args.image))?);
    match context.global.json {
        true => render::json(&inspection)?,
        false => render::line(describe(&inspection).trim_end())?,
    }
    session.close().await;
    let eligible = inspection.ineligible.is_empty();
    Ok(if eligible { ExitCode::SUCCESS } else { ExitCode::from(crate::exit::NOT_ELIGIBLE) })
}

impl From<InspectReply> for Inspection {
    fn from(reply: InspectReply) -> Inspection {
        let layers: Vec<Layer> = reply.layers.into_iter().map(Layer::from).collect();
        Inspection {
            reference: reply.reference,
            manifest_digest: reply.manifest_digest,
            manifest_media_type: reply.manifest_media_type,
            config_digest: reply.config_digest,
            platform: reply.platform.map(platform).unwrap_or_default(),
            compressed_bytes: layers.iter().filter(|layer| !layer.duplicate).map(|layer| layer.size).sum(),
            layers,
            ineligible: reply.ineligible,
            policies: reply.verdicts.into_iter().map(Policy::from).collect(),
            starts: Starts::from(reply.starts.unwrap_or_default()),
            image: reply.image.filter(|_| reply.imported).map(super::ls::Image::from),
        }
    }
}

impl From<proto::Starts> for Starts {
    fn from(starts: proto::Starts) -> Starts {
        Starts { reported: starts.reported, chunks: starts.chunks, recompressed: starts.recompressed }
    }
}

impl From<Verdict> for Policy {
    fn from(verdict: Verdict) -> Policy {
        Policy {
            decision: match verdict.decision() {
                Decision::Accept => "accept",
                Decision::Refuse => "refuse",
                Decision::Abstain => "abstain",
            },
            policy: verdict.policy,
            version: verdict.version,
            digest: verdict.digest,
            reason: verdict.reason,
            message: verdict.message,
            details: verdict.details.into_iter().map(|pair| (pair.name, pair.value)).collect(),
            monitored: verdict.monitored,
            failure: Some(verdict.failure).filter(|failure| !failure.is_empty()),
        }
    }
}

impl From<InspectLayer> for Layer {
    fn from(layer: InspectLayer) -> Layer {
        Layer {
            digest: layer.digest,
            media_type: layer.media_type,
            size: layer.size,
            diff_id: layer.diff_id,
            empty: layer.empty,
            duplicate: layer.duplicate,
            encrypted: layer.encrypted,
            known: layer.known,
        }
    }
}

fn platform(platform: proto::Platform) -> String {
    let parts = [platform.os, platform.architecture, platform.variant];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

fn describe(inspection: &Inspection) -> String {
    let eligible = match &inspection.ineligible[..] {
        [] => "yes".to_owned(),
        reasons => format!("no: {}", reasons.join("; ")),
    };
    let imported = match &inspection.image {
        None => "no".to_owned(),
        Some(image) => format!(
            "{} ({} files, {}, {} stored)",
            render::age(image.imported_unix, render::now_unix()),
            image.files,
            render::bytes(image.plain_bytes),
            render::bytes(image.stored_bytes)
        ),
    };
    let layers =
        format!("{}, {} compressed", inspection.layers.len(), render::bytes(inspection.compressed_bytes));
    let Starts { reported, chunks, recompressed } = inspection.starts;
    let starts = match (reported, chunks) {
        (0, 0) => "none known".to_owned(),
        (0, _) => format!("none known; {chunks} chunks guessed from an earlier image"),
        _ => format!(
            "{reported} reported; {chunks} chunks to prefetch, {recompressed} stored as small as they get"
        ),
    };
    let facts = [
        ("image", &inspection.reference),
        ("manifest", &inspection.manifest_digest),
        ("type", &inspection.manifest_media_type),
        ("config", &inspection.config_digest),
        ("platform", &inspection.platform),
        ("can stream", &eligible),
        ("imported", &imported),
        ("starts", &starts),
        ("layers", &layers),
    ];
    let mut text: String = facts.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    text.push('\n');
    if !inspection.policies.is_empty() {
        let rows = inspection.policies.iter().map(policy_row).collect();
        text += &render::table(&["policy", "says", "reason", ""], &[], rows);
        text.push('\n');
    }
    text + &render::table(
        &["layer", "size", "type", "notes"],
        &[1],
        inspection.layers.iter().map(row).collect(),
    )
}

fn policy_row(policy: &Policy) -> Vec<String> {
    let says = match (policy.monitored, &policy.failure) {
        (true, _) => format!("{} (monitored)", policy.decision),
        (false, Some(_)) => format!("{} (failed)", policy.decision),
        (false, None) => policy.decision.to_owned(),
    };
    vec![policy.policy.clone(), says, policy.reason.clone(), policy.message.clone()]
}

fn row(layer: &Layer) -> Vec<String> {
    let notes = [
        (layer.empty, "empty"),
        (layer.duplicate, "duplicate"),
        (layer.encrypted, "encrypted"),
        (layer.known, "known"),
    ];
    let notes: Vec<&str> = notes.into_iter().filter_map(|(holds, note)| holds.then_some(note)).collect();
    let kind = layer.media_type.rsplit("vnd.").next().unwrap_or_default();
    vec![
        render::short(&layer.digest).to_owned(),
        render::bytes(layer.size),
        kind.to_owned(),
        notes.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, duplicate: bool) -> InspectLayer {
        InspectLayer {
            digest: format!("sha256:{digest}"),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            size: 1_500_000,
            duplicate,
            known: duplicate,
            ..InspectLayer::default()
        }
    }

    #[test]
    fn shows_what_each_policy_says() {
        let verdict = |policy: &str, decision: Decision, monitored: bool, failure: &str| Verdict {
            policy: policy.to_owned(),
            decision: decision.into(),
            reason: "code".to_owned(),
            message: "why".to_owned(),
            monitored,
            failure: failure.to_owned(),
            ..Verdict::default()
        };
        let verdicts = vec![
            verdict("one", Decision::Refuse, false, ""),
            verdict("two", Decision::Abstain, true, ""),
            verdict("three", Decision::Refuse, false, "trap"),
        ];
        let text = describe(&Inspection::from(InspectReply { verdicts, ..InspectReply::default() }));
        for line in [
            "one     refuse               code    why",
            "two     abstain (monitored)",
            "three   refuse (failed)",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn describes_layers_and_counts_duplicates_once() {
        let inspection = Inspection::from(InspectReply {
            reference: "app:1".to_owned(),
            layers: vec![layer("0123456789abcdef", false), layer("0123456789abcdef", true)],
            ineligible: vec!["layer 2 is encrypted".to_owned()],
            starts: Some(proto::Starts { reported: 2, chunks: 9, recompressed: 4 }),
            ..InspectReply::default()
        });
        assert_eq!(inspection.compressed_bytes, 1_500_000);
        let text = describe(&inspection);
        assert!(text.contains("can stream  no: layer 2 is encrypted"), "{text}");
        assert!(text.contains("2 reported; 9 chunks to prefetch, 4 stored as small"), "{text}");
        assert!(
            text.contains("0123456789ab  1.5 MB  oci.image.layer.v1.tar+gzip  duplicate, known"),
            "{text}"
        );
    }
}
