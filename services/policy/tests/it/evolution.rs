//! The rules by which the contract may change (`plugins/wit/policy.wit`), kept.
//!
//! The plugins in `frozen/`, one of each world, were built once, against the contract's first version, and are never built again: what
//! they cannot do on today's host, no policy of a user's can.

use std::path::Path;

use policy::{Config, PolicyConfig, SetConfig};
use proto::plan_item::{ChunkRun, Item};
use proto::plan_reply::Mode;
use proto::{Decision, PlanItem};

use crate::harness::{Harness, facts, image, pinned, refusal};

const JUDGE: &[u8] = include_bytes!("../frozen/schema-version-0.1.0.wasm");
const PLANNER: &[u8] = include_bytes!("../frozen/learned-0.1.0.wasm");

/// A frozen plugin, as if it had been built against another version of the contract.
fn built_against(version: &str, frozen: &[u8]) -> Vec<u8> {
    let (old, new) = (b"@0.1.0", format!("@{version}").into_bytes());
    assert_eq!(old.len(), new.len(), "names in a component have a length");
    let mut bytes = frozen.to_vec();
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(old.len()).position(|window| window == old) {
        at += found;
        bytes[at..at + new.len()].copy_from_slice(&new);
    }
    assert!(at > 0, "the plugin names no version");
    bytes
}

fn policy(file: &Path) -> PolicyConfig {
    PolicyConfig { source: pinned(file), ..PolicyConfig::builtin("old") }
}

async fn judges(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::write(&file, bytes).unwrap();
    let set = SetConfig { eligibility: vec![policy(&file)], ..SetConfig::default() };
    let harness = Harness::start(Config { set, ..Config::default() }).await.unwrap();
    assert_eq!(harness.judge(facts()).await.decision(), Decision::Accept);
    let refused = harness.judge(image(|image| image.schema_version = 1)).await;
    assert_eq!(refused.decision(), Decision::Refuse);
    assert_eq!(refused.verdicts[0].reason, "schema-version");
}

async fn plans(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::write(&file, bytes).unwrap();
    let settings = "rest = false\nbandwidth = 5_000_000".parse().unwrap();
    let set =
        SetConfig { prefetch: vec![PolicyConfig { settings, ..policy(&file) }], ..SetConfig::default() };
    let harness = Harness::start(Config { set, ..Config::default() }).await.unwrap();
    let plan = harness.plan(2, 7).await.unwrap();
    assert_eq!((plan.mode(), plan.bandwidth), (Mode::ListedOnly, Some(5_000_000)));
    let run = Item::Chunks(ChunkRun { first: 0, count: 7 });
    assert_eq!(plan.items, [PlanItem { item: Some(run) }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_the_first_version_work_for_ever() {
    judges(JUDGE).await;
    plans(PLANNER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_a_newer_patch_work_as_long_as_they_need_nothing_new() {
    judges(&built_against("0.1.9", JUDGE)).await;
    plans(&built_against("0.1.9", PLANNER)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_another_minor_version_are_refused_by_their_version() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    let newer = "it speaks sluice:policy 0.2.0; this host speaks 0.1";
    std::fs::write(&file, built_against("0.2.0", JUDGE)).unwrap();
    let error = refusal(policy(&file)).await;
    assert!(error.contains(newer), "{error}");
    std::fs::write(&file, built_against("0.2.0", PLANNER)).unwrap();
    let set = SetConfig { prefetch: vec![policy(&file)], ..SetConfig::default() };
    let error = format!("{:#}", Harness::start(Config { set, ..Config::default() }).await.err().unwrap());
    assert!(error.contains(newer), "{error}");
}
