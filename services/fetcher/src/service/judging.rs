//! May this image stream? What the policies say, and what holds without them.
//!
//! Whether the layers can be read at all is a rule of ours; everything else is the policies'. They are asked each time before
//! an image is granted, also when it was imported long ago: what they say may have changed since.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::ImageConfig;
use names::ImageName;
use proto::refusal::{POLICY, POLICY_REASON};
use proto::{
    AskerFacts, Decision, Facts, ImageFacts, InspectLayer, JudgeReply, JudgeRequest, LayerFacts, Pair,
    Verdict,
};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Service;
use super::inspect::layers;
use crate::config::{Judging, Unanswered};
use crate::source::Found;

/// In error details, who says why an image cannot stream.
/// Reason codes of our own, beside those of policies.
const UNREADABLE: &str = "unreadable-layers";
/// As the policy service says it of one policy.
const POLICY_FAILED: &str = "policy-failed";
/// Until policies that are full are asked again.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// What was found about an image's eligibility.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) verdicts: Vec<Verdict>,
    /// What the policies were told.
    pub(super) facts: Facts,
    /// Why the image cannot stream, each with its code; empty: it can.
    pub(super) refusals: Vec<Refusal>,
    /// Nobody answers for policies.
    pub(super) unasked: bool,
}

/// What the policies said, and which of it refuses. Nothing: nobody was asked.
#[derive(Debug, Default)]
struct Said {
    verdicts: Vec<Verdict>,
    refusals: Vec<Refusal>,
    unasked: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    /// Empty: a rule of the fetcher itself.
    policy: String,
    code: String,
    message: String,
}

/// Who asks for an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker<'a> {
    pub(super) project: &'a str,
    pub(super) node: &'a str,
    /// What the node says of itself.
    pub(super) said: Option<&'a AskerFacts>,
}

impl Service {
    /// Asks the policies. An error: they are required, and nobody answers for them.
    pub(super) async fn judge(
        &self,
        name: &ImageName,
        found: &Found,
        asker: Asker<'_>,
    ) -> Result<Judged, Status> {
        let facts = facts(&self.judging, name, found, &asker);
        let request = JudgeRequest { facts: Some(facts.clone()) };
        let said = match self.ask_policies(request).await {
            Ok(reply) => Said::from(reply),
            Err(status) if of_the_question(&status) => {
                let reason = format!("{name}: the policies cannot be asked about it: {}", status.message());
                return Err(Status::invalid_argument(reason));
            }
            Err(status) if status.code() != Code::Unavailable => {
                metrics::counter!("sluice_fetcher_judging_failed_total").increment(1);
                tracing::warn!(image = %name, error = status.message(), "the policies failed: it does not stream");
                Said::failed(&status)
            }
            Err(status) => match self.judging.unanswered {
                Unanswered::Accept => {
                    metrics::counter!("sluice_fetcher_unjudged_total").increment(1);
                    tracing::debug!(image = %name, error = status.message(), "no policy was asked");
                    Said { unasked: true, ..Said::default() }
                }
                Unanswered::Refuse => {
                    let reason = format!(
                        "{name}: policies must agree, and nobody answers for them: {}",
                        status.message()
                    );
                    return Err(Status::unavailable(reason));
                }
            },
        };
        Ok(Judged { facts, ..judged(said, found) })
    }

    /// Where policies must agree, one that restarts is waited for; else nobody waits for a service that may not exist. One that is
    /// full has not looked at the question: it is asked again.
    async fn ask_policies(&self, request: JudgeRequest) -> Result<JudgeReply, Status> {
        let (end, mut left) = (Instant::now() + self.judging.wait, self.judging.wait);
        loop {
            let answer = match self.judging.unanswered {
                Unanswered::Accept => self.bus.call_once(request.clone(), left).await,
                Unanswered::Refuse => self.bus.call(request.clone(), left).await,
            };
            left = end.saturating_duration_since(Instant::now() + FULL_PAUSE);
            match answer {
                Err(status)
                    if proto::Refusal::of(&status) == Some(proto::Refusal::Busy) && !left.is_zero() =>
                {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                answer => return answer,
            }
        }
    }
}

/// Whether it is the question that cannot be answered, as one whose facts are more than a message holds: no image may get
/// around the policies by what it says of itself. Else nobody answers (`UNAVAILABLE`), or somebody could not: that is a failure of the
/// policies, as the question may be what overtaxes them.
fn of_the_question(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::OutOfRange)
}

impl Judged {
    /// The error for who asked: every reason in its message, the first one's policy and code in its details.
    pub(super) fn permit(&self, name: &ImageName) -> Result<(), Status> {
        let Some(first) = self.refusals.first() else { return Ok(()) };
        let mut metadata = HashMap::from([
            ("image".to_owned(), name.to_string()),
            (POLICY_REASON.to_owned(), first.code.clone()),
        ]);
        if !first.policy.is_empty() {
            metadata.insert(POLICY.to_owned(), first.policy.clone());
        }
        let message = format!("{name}: it cannot be streamed: {}", self.reasons().join("; "));
        Err(proto::Refusal::Invalid.with(message, metadata, None))
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        self.refusals.iter().map(ToString::to_string).collect()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.policy.is_empty() {
            true => formatter.write_str(&self.message),
            false => write!(formatter, "{} (policy {}: {})", self.message, self.policy, self.code),
        }
    }
}

impl From<JudgeReply> for Said {
    fn from(reply: JudgeReply) -> Said {
        let refused = reply.decision() == Decision::Refuse;
        let speaks =
            |verdict: &&Verdict| refused && !verdict.monitored && verdict.decision() == Decision::Refuse;
        let refusal = |verdict: &Verdict| Refusal {
            policy: verdict.policy.clone(),
            code: verdict.reason.clone(),
            message: verdict.message.clone(),
        };
        let refusals = reply.verdicts.iter().filter(speaks).map(refusal).collect();
        Said { verdicts: reply.verdicts, refusals, unasked: false }
    }
}

impl Said {
    /// There are policies, but no answer of them.
    fn failed(status: &Status) -> Said {
        let message = format!("the policies failed: {} ({POLICY_FAILED})", status.message());
        let refusal = Refusal { policy: String::new(), code: POLICY_FAILED.to_owned(), message };
        Said { refusals: vec![refusal], ..Said::default() }
    }
}

fn judged(Said { verdicts, mut refusals, unasked }: Said, found: &Found) -> Judged {
    let own = |message: &String| Refusal {
        policy: String::new(),
        code: UNREADABLE.to_owned(),
        message: message.clone(),
    };
    refusals.extend(found.ineligible.iter().map(own));
    Judged { verdicts, refusals, unasked, facts: Facts::default() }
}

fn facts(judging: &Judging, name: &ImageName, found: &Found, asker: &Asker<'_>) -> Facts {
    let registry = if let ImageName::Registry(reference) = name { reference.registry() } else { "" };
    let said = asker.said.cloned().unwrap_or_default();
    Facts {
        image: Some(image_facts(name, found)),
        asker: Some(AskerFacts {
            project: asker.project.to_owned(),
            node: asker.node.to_owned(),
            region: said.region.or_else(|| judging.region.clone()),
            pool: said.pool,
            labels: Pair::bounded(said.labels.into_iter().map(|pair| (pair.name, pair.value))),
        }),
        registry_region: judging.region_of(registry),
        now_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64),
        more: Vec::new(),
    }
}

fn image_facts(name: &ImageName, found: &Found) -> ImageFacts {
    let config = ImageConfig::read(&found.config);
    let layers: Vec<InspectLayer> = layers(found, &vec![false; found.layers.len()], None);
    ImageFacts {
        manifest_digest: found.manifest_digest.clone(),
        manifest_media_type: found.media_type.clone(),
        schema_version: found.schema_version,
        config_digest: found.config_digest.clone(),
        platform: Some(found.platform.clone()),
        labels: Pair::bounded(config.labels),
        annotations: Pair::bounded(found.annotations.clone()),
        created_ms: config.created_ms,
        ..ImageFacts::of(&name.to_string(), layers.into_iter().map(layer_facts).collect())
    }
}

fn layer_facts(layer: InspectLayer) -> LayerFacts {
    LayerFacts {
        digest: layer.digest,
        diff_id: layer.diff_id,
        media_type: layer.media_type,
        size: layer.size,
        empty: layer.empty,
        duplicate: layer.duplicate,
        encrypted: layer.encrypted,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn found(ineligible: &[&str]) -> Found {
        Found {
            manifest_digest: "sha256:m".into(),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            schema_version: 2,
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            config_digest: "sha256:c".into(),
            config: r#"{"created":"2026-01-01T00:00:00.5Z","config":{"Labels":{"x":"y"}}}"#.into(),
            platform: proto::Platform::default(),
            layers: Vec::new(),
            ineligible: ineligible.iter().map(ToString::to_string).collect(),
        }
    }

    fn said(verdicts: Vec<Verdict>, refused: bool) -> Said {
        let decision = if refused { Decision::Refuse } else { Decision::Accept };
        Said::from(JudgeReply { verdicts, decision: decision.into(), ..JudgeReply::default() })
    }

    fn verdict(policy: &str, decision: Decision, monitored: bool) -> Verdict {
        let (decision, reason, message) = (decision.into(), "code".to_owned(), "it is so".to_owned());
        Verdict { policy: policy.to_owned(), decision, reason, message, monitored, ..Verdict::default() }
    }

    #[test]
    fn every_reason_is_told_and_the_first_code_is_in_the_details() {
        let verdicts = vec![verdict("one", Decision::Accept, false), verdict("two", Decision::Refuse, false)];
        let status = judged(said(verdicts, true), &found(&["layer x: it is encrypted"]))
            .permit(&"app:1".parse().unwrap());
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "docker.io/library/app:1: it cannot be streamed: it is so (policy two: code); layer x: it is encrypted"
        );
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, proto::Refusal::Invalid.reason());
        assert_eq!((&*info.metadata[POLICY], &*info.metadata[POLICY_REASON]), ("two", "code"));
    }

    #[test]
    fn what_is_monitored_or_outvoted_is_no_reason() {
        let verdicts =
            vec![verdict("shadow", Decision::Refuse, true), verdict("late", Decision::Refuse, false)];
        assert!(judged(said(verdicts.clone(), false), &found(&[])).refusals.is_empty());
        assert_eq!(judged(said(verdicts, true), &found(&[])).reasons(), ["it is so (policy late: code)"]);
    }

    #[test]
    fn facts_are_what_manifest_and_config_say() {
        let judging = Judging { region: Some("eu-1".into()), ..Judging::default() };
        let facts = facts(&judging, &"ghcr.io/team/app:1".parse().unwrap(), &found(&[]), &Asker::default());
        let image = facts.image.unwrap();
        assert_eq!((image.registry.as_str(), image.repository.as_str()), ("ghcr.io", "team/app"));
        assert_eq!((image.tag.as_deref(), image.created_ms), (Some("1"), Some(1_767_225_600_500)));
        assert_eq!((image.labels[0].name.as_str(), image.annotations[0].value.as_str()), ("x", "b"));
        assert_eq!(facts.asker.unwrap().region.as_deref(), Some("eu-1"));
    }
}
