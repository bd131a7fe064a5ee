//! Plugins and sets that are never used: each with the reason.

use std::path::Path;

use policy::{Config, PolicyConfig, SetConfig};

use crate::harness::{Harness, built, config, hostile, pinned, refusal};

fn policy(source: String) -> PolicyConfig {
    PolicyConfig { source, ..PolicyConfig::builtin("mine") }
}

async fn bytes_are_refused(bytes: impl AsRef<[u8]>, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::write(&file, bytes).unwrap();
    let error = refusal(policy(pinned(&file))).await;
    assert!(error.contains(expected) && error.contains("\"mine\""), "{error}");
}

async fn component_is_refused(text: &str, expected: &str) {
    bytes_are_refused(wat::parse_str(text).unwrap(), expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_policy_is_refused_by_what_it_is() {
    bytes_are_refused(b"#!/bin/sh", "it is not WebAssembly").await;
    let mut broken = std::fs::read(built("schema-version.wasm")).unwrap();
    broken.truncate(20_000);
    bytes_are_refused(broken, "it is not a valid WebAssembly component").await;
    bytes_are_refused(wat::parse_str("(module)").unwrap(), "it is a core module, not a component").await;
    component_is_refused("(component)", "it exports nothing, and not sluice:policy/judge").await;
    component_is_refused(
        r#"(component (instance $i) (export "sluice:policy/judge@0.2.0" (instance $i)))"#,
        "it speaks sluice:policy 0.2.0; this host speaks 0.1",
    )
    .await;
    component_is_refused(
        r#"(component (instance $i) (export "sluice:policy/judge@0.1.0" (instance $i)))"#,
        "its eligibility interface is not that of sluice:policy 0.1",
    )
    .await;
    component_is_refused(
        "(component (core module $m (memory 2000)) (core instance (instantiate $m)))",
        "it needs more than an instance may have: ",
    )
    .await;
    let modules = "(core instance (instantiate $m))".repeat(65);
    component_is_refused(
        &format!("(component (core module $m) {modules})"),
        "contains 65 core module instances, which exceeds the configured maximum of 64",
    )
    .await;
    let prefetch = refusal(PolicyConfig::builtin("learned")).await;
    assert!(
        prefetch.contains("it is not of the world `eligibility`: it exports sluice:policy/plan@0.1.0"),
        "{prefetch}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn compiled_code_of_others_is_refused_however_good_it_is() {
    let engine = wasmtime::Engine::default();
    let plugin = std::fs::read(built("schema-version.wasm")).unwrap();
    let compiled = engine.precompile_component(&plugin).unwrap();
    bytes_are_refused(compiled, "compiled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_imports_more_than_a_log_is_refused_before_it_runs() {
    for import in
        ["wasi:cli/environment@0.2.0", "wasi:clocks/monotonic-clock@0.2.0", "wasi:sockets/tcp@0.2.0"]
    {
        let text = format!(r#"(component (import "{import}" (instance)))"#);
        component_is_refused(&text, &format!("it imports {import}; a policy may import nothing but")).await;
    }
    component_is_refused(
        r#"(component (import "sluice:policy/clock@0.1.0" (instance)))"#,
        "it imports sluice:policy/clock@0.1.0",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_digest_than_the_pinned_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::copy(built("schema-version.wasm"), &file).unwrap();
    let source = pinned(&file);
    std::fs::copy(built("size-limits.wasm"), &file).unwrap();
    let error = refusal(policy(source)).await;
    assert!(error.contains("is not what was pinned"), "{error}");
    let error = refusal(policy(format!("file:{}", file.display()))).await;
    assert!(error.contains("is not pinned"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_checked_by_the_host_and_by_the_policy() {
    let hostile = hostile();
    for (source, settings, expected) in [
        (
            "builtin:size-limits",
            "largest-image = 'much'",
            "its settings are wrong: largest-image: a whole number expected",
        ),
        ("builtin:size-limits", "biggest = 3", "biggest: there is no such setting; there are largest-image"),
        (
            "builtin:size-limits",
            "largest-image = 1\nsmallest-image = 2",
            "smallest-image: it is more than largest-image",
        ),
        ("builtin:registry-region", "areas = { europe = [] }", "areas: europe contains no region"),
        (hostile.as_str(), "even = 3", "even: it is odd"),
        (
            hostile.as_str(),
            "checks = 'loop'",
            "letting it check its settings: it used more than 100ms of a processor",
        ),
        (hostile.as_str(), "checks = 'panic'", "nobody expects this"),
        (
            hostile.as_str(),
            "answer = 'Not A Code'",
            "trying it on an ordinary image: its answer makes no sense",
        ),
    ] {
        let settings = settings.parse().unwrap();
        let error = refusal(PolicyConfig { settings, ..policy(source.to_owned()) }).await;
        assert!(error.contains(expected), "{source}: {error}");
    }
}

/// A plugin has a hand in what is said of it. No megabytes of that reach a log, and nothing that moves a cursor.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_says_of_itself_is_bounded_and_on_one_line() {
    let long = format!(r#"(component (import "{}" (instance)))"#, "a".repeat(100_000));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.wasm");
    std::fs::write(&file, wat::parse_str(long).unwrap()).unwrap();
    let hostile = hostile();
    for (source, settings, expected) in [
        (pinned(&file), "", "it imports aaaa"),
        // A megabyte, as far as the limit of what a call hands over lets it.
        (
            hostile.clone(),
            "error-lines = 110_000",
            "trying it on an ordinary image: it reports an error:  [31mred",
        ),
        (hostile, "unknown = 1", "there is no such setting; there are checks, even, error-lines,  [31mred"),
    ] {
        let settings = settings.parse().unwrap();
        let error = refusal(PolicyConfig { settings, ..policy(source) }).await;
        assert!(error.contains(expected), "{error:?}");
        assert!(
            error.len() < 2_000 && !error.chars().any(char::is_control),
            "{} bytes: {error:?}",
            error.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_is_too_large_and_a_set_that_is_ambiguous_are_refused() {
    let mut small = config("[[eligibility]]\nname = 'a'\nsource = 'builtin:schema-version'");
    small.set.eligibility = vec![policy(pinned(&built("schema-version.wasm")))];
    small.limits.plugin_size = bytesize::ByteSize::b(1_000);
    let error = format!("{:#}", Harness::start(small).await.err().unwrap());
    assert!(error.contains("more than 1000 bytes"), "{error}");

    let twice = vec![PolicyConfig::builtin("schema-version"), PolicyConfig::builtin("schema-version")];
    let set = SetConfig { eligibility: twice, ..SetConfig::default() };
    let error = format!("{:#}", Harness::start(Config { set, ..Config::default() }).await.err().unwrap());
    assert!(error.contains("two policies have the name \"schema-version\""), "{error}");

    let absent = Config { file: Some(Path::new("/nonexistent/policies.toml").into()), ..Config::default() };
    let error = format!("{:#}", Harness::start(absent).await.err().unwrap());
    assert!(error.contains("reading the policy set /nonexistent/policies.toml"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_rule_is_for_eligibility_policies() {
    let start = |world: &str, rule: &str| {
        let source = if world == "prefetch" { "learned" } else { "schema-version" };
        let policy = format!("name = 'mine'\nsource = 'builtin:{source}'\non_failure = '{rule}'");
        Harness::start(config(&format!("[[{world}]]\n{policy}")))
    };
    for rule in ["refuse", "accept", "abstain"] {
        start("eligibility", rule).await.unwrap();
        let error = format!("{:#}", start("prefetch", rule).await.err().unwrap());
        assert!(error.contains("the prefetch policy \"mine\" has `on_failure`"), "{error}");
        assert!(error.contains("the next one plans, or else the node by itself"), "{error}");
    }
}
