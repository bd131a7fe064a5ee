//! What each policy that comes with sluice decides.

use proto::plan_item::{ChunkRun, Item};
use proto::plan_reply::Mode;
use proto::{AskerFacts, Decision, Facts, JudgeReply, PlanReply};

use crate::harness::{Harness, config, facts, image};

/// What `name` with these settings says: its decision and its reason code.
async fn says(name: &str, settings: &str, facts: Facts) -> (Decision, String) {
    let set =
        format!("[[eligibility]]\nname = 'x'\nsource = 'builtin:{name}'\n[eligibility.settings]\n{settings}");
    let JudgeReply { verdicts, .. } = Harness::with(&set).await.judge(facts).await;
    assert_eq!(verdicts[0].failure, "", "{}", verdicts[0].message);
    (verdicts[0].decision(), verdicts[0].reason.clone())
}

async fn check(name: &str, settings: &str, facts: Facts, refused: Option<&str>) {
    let (decision, reason) = says(name, settings, facts).await;
    match refused {
        Some(code) => assert_eq!((decision, reason.as_str()), (Decision::Refuse, code), "{name}: {settings}"),
        None => assert_ne!(decision, Decision::Refuse, "{name}: {settings}: {reason}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_version() {
    check("schema-version", "", facts(), None).await;
    check("schema-version", "", image(|image| image.schema_version = 1), Some("schema-version")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_layers() {
    check("encrypted-layers", "", facts(), None).await;
    check("encrypted-layers", "", image(|image| image.layers[1].encrypted = true), Some("encrypted-layers"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_shape() {
    let (empty, duplicate) =
        (image(|image| image.layers[0].empty = true), image(|image| image.layers[1].duplicate = true));
    check("layer-shape", "", facts(), None).await;
    check("layer-shape", "", empty.clone(), Some("empty-layer")).await;
    check("layer-shape", "allow-empty = true", empty, None).await;
    check("layer-shape", "", duplicate.clone(), Some("duplicate-layer")).await;
    check("layer-shape", "allow-duplicate = true", duplicate, None).await;
    check("layer-shape", "most-layers = 1", facts(), Some("too-many-layers")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn size_limits() {
    check("size-limits", "", facts(), None).await;
    check("size-limits", "largest-image = 1500\nlargest-layer = 1000\nsmallest-image = 1500", facts(), None)
        .await;
    check("size-limits", "largest-image = 1499", facts(), Some("image-too-large")).await;
    check("size-limits", "largest-layer = 999", facts(), Some("layer-too-large")).await;
    check("size-limits", "smallest-image = 1501", facts(), Some("image-too-small")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_region() {
    let policy = "registry-region";
    let areas = "areas = { europe = ['eu-1', 'eu-2'], Asia = ['asia-1'] }";
    let at = |region: Option<&str>| Facts { registry_region: region.map(str::to_owned), ..facts() };
    let here = "region = 'eu-1'";
    check(policy, here, at(Some("eu-1")), None).await;
    check(policy, here, at(Some("eu-2")), Some("region-mismatch")).await;
    check(policy, here, at(Some("europe")), Some("region-mismatch")).await;
    check(policy, &format!("{here}\n{areas}"), at(Some("europe")), None).await;
    check(policy, &format!("{here}\n{areas}"), at(Some("Asia")), Some("region-mismatch")).await;
    check(policy, "region = 'asia-1'\nareas = { Asia = ['asia-1'] }", at(Some("Asia")), None).await;
    check(policy, here, at(None), Some("registry-region-unknown")).await;
    check(policy, &format!("{here}\nallow-unknown = true"), at(None), None).await;
    check(policy, &format!("{here}\nregistries = {{ eu-1 = ['registry.example'] }}"), at(None), None).await;
    check(policy, "", at(Some("eu-1")), Some("region-unknown")).await;
    let asker = AskerFacts { region: Some("eu-1".to_owned()), ..AskerFacts::default() };
    check(policy, "", Facts { asker: Some(asker), ..at(Some("eu-1")) }, None).await;
    for (allow, refused) in [
        ("registry.example", None),
        ("registry.example/team", None),
        ("registry.example/team/app", None),
        ("registry.example/tea", Some("region-mismatch")),
        ("registry.example/team/application", Some("region-mismatch")),
    ] {
        check(policy, &format!("{here}\nallow = ['{allow}']"), at(Some("us")), refused).await;
    }
    check(policy, here, image(|image| image.registry.clear()), None).await;
}

async fn plan(settings: &str, source: &str, starts: u32, chunks: u32) -> PlanReply {
    let set =
        format!("[[prefetch]]\nname = 'x'\nsource = 'builtin:{source}'\n[prefetch.settings]\n{settings}");
    Harness::start(config(&set)).await.unwrap().plan(starts, chunks).await.unwrap()
}

fn items(plan: &PlanReply) -> Vec<Item> {
    plan.items.iter().filter_map(|item| item.item.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn learned_and_whole_image() {
    let run = |count| Item::Chunks(ChunkRun { first: 0, count });
    let learned = plan("", "learned", 3, 12).await;
    assert_eq!(
        (learned.mode(), items(&learned), learned.bandwidth),
        (Mode::ListedThenRest, vec![run(12)], None)
    );
    let nothing_known = plan("", "learned", 0, 0).await;
    assert_eq!((nothing_known.mode(), items(&nothing_known)), (Mode::ListedThenRest, vec![]));
    let told = plan("rest = false\nbandwidth = 5000000", "learned", 1, 2).await;
    assert_eq!((told.mode(), told.bandwidth), (Mode::ListedOnly, Some(5_000_000)));
    assert_eq!(items(&told), [run(2)]);
    let whole = plan("", "whole-image", 1, 5).await;
    assert_eq!((whole.mode(), items(&whole)), (Mode::Everything, vec![run(5)]));
}
