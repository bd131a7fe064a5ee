//! Policies outside of the service, as their authors try them.

use bytesize::ByteSize;
use policy::{Limits, Trial};
use proto::{Facts, ImageFacts, Pair};

use crate::harness::built;

async fn trial(plugin: &str, limits: Limits) -> Trial {
    let plugin = built(plugin);
    let load = move || Trial::of_plugin(&plugin, toml::Table::new(), limits).unwrap();
    tokio::task::spawn_blocking(load).await.unwrap()
}

#[tokio::test]
async fn a_plugin_is_examined_whichever_its_world() {
    for (plugin, export) in [("size-limits.wasm", "judge"), ("learned.wasm", "plan")] {
        let trial = trial(plugin, Limits::default()).await;
        let examined = tokio::task::spawn_blocking(move || trial.examine()).await.unwrap().unwrap();
        let ours = |name: &String| name.starts_with(&format!("sluice:policy/{export}@0.1."));
        assert!(examined.exports.iter().any(ours), "{examined:?}");
        assert!(examined.imports.iter().all(|name| name.starts_with("sluice:policy/")), "{examined:?}");
        assert_eq!(examined.size, std::fs::metadata(built(plugin)).unwrap().len());
        assert!(
            examined.call.memory > 0 && examined.call.processor <= Limits::default().time,
            "{examined:?}"
        );
    }
}

#[tokio::test]
async fn a_plan_that_fails_says_why() {
    // Enough for an ordinary image, and less than the facts of this one.
    let limits = Limits { memory: ByteSize::mib(4), ..Limits::default() };
    let trial = trial("learned.wasm", limits).await;
    let label = Pair { name: "large".to_owned(), value: "x".repeat(8 << 20) };
    let image = ImageFacts { labels: vec![label], ..ImageFacts::default() };
    let facts = Facts { image: Some(image), ..Facts::default() };
    let planned = tokio::task::spawn_blocking(move || trial.plan(facts, 1, 3)).await.unwrap();
    let error = planned.unwrap_err().to_string();
    assert_eq!(error, "it needs more than 4.0 MiB of memory (memory)");
}
