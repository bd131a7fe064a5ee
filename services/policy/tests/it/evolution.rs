//! The rules by which the contract may change (`plugins/wit/policy.wit`), kept.
//!
//! `frozen/schema-version-0.1.0.wasm` was built once, against the contract's first version, and is never built again: what
//! it cannot do on today's host, no policy of a user's can.

use std::path::Path;

use policy::PolicyConfig;
use proto::Decision;

use crate::harness::{Harness, facts, image, pinned, refusal};

const FROZEN: &[u8] = include_bytes!("../frozen/schema-version-0.1.0.wasm");

/// The frozen plugin, as if it had been built against another version of the contract.
fn built_against(version: &str) -> Vec<u8> {
    let (old, new) = (b"@0.1.0", format!("@{version}").into_bytes());
    assert_eq!(old.len(), new.len(), "names in a component have a length");
    let mut bytes = FROZEN.to_vec();
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

async fn works(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::write(&file, bytes).unwrap();
    let set = policy::SetConfig { eligibility: vec![policy(&file)], ..policy::SetConfig::default() };
    let harness = Harness::start(policy::Config { set, ..policy::Config::default() }).await.unwrap();
    assert_eq!(harness.judge(facts()).await.decision(), Decision::Accept);
    let refused = harness.judge(image(|image| image.schema_version = 1)).await;
    assert_eq!(refused.decision(), Decision::Refuse);
    assert_eq!(refused.verdicts[0].reason, "schema-version");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_the_first_version_works_for_ever() {
    works(FROZEN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_a_newer_patch_works_as_long_as_it_needs_nothing_new() {
    works(&built_against("0.1.9")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_another_minor_version_is_refused_by_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::write(&file, built_against("0.2.0")).unwrap();
    let error = refusal(policy(&file)).await;
    assert!(error.contains("it speaks sluice:policy 0.2.0; this host speaks 0.1"), "{error}");
}
