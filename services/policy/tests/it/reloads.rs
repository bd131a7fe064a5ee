//! Sets that cannot be used while another one is: each leaves the old one in place, and is told, counted and shown with its reason.

use std::path::{Path, PathBuf};

use futures::future::join_all;
use policy::{Config, Required, SigningKey, TrustConfig, sign_file, signature_file};
use proto::{Decision, EventKind};

use crate::harness::{Harness, built, config, counted, facts, pinned};
use crate::sets::until;

/// Refuses the image that is asked about.
const FIRST: &str =
    "[[eligibility]]\nname = 'first'\nsource = 'builtin:size-limits'\nsettings = { largest-image = 1 }";

/// What a new set needs and does not have.
struct Case {
    source: String,
    settings: &'static str,
    why: &'static str,
}

/// A plugin in `folder`, signed.
fn signed(folder: &Path, name: &str, plugin: &[u8], key: &SigningKey) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, plugin).unwrap();
    std::fs::write(signature_file(&file), sign_file(plugin, key).unwrap()).unwrap();
    file
}

fn cases(folder: &Path, key: &SigningKey) -> Vec<Case> {
    let plugin = std::fs::read(built("tests/hostile.wasm")).unwrap();
    let hostile = pinned(&signed(folder, "hostile.wasm", &plugin, key));
    let curious = wat::parse_str(r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#).unwrap();
    let other = signed(folder, "other.wasm", &plugin, key);
    let was = pinned(&other);
    signed(folder, "other.wasm", &curious, key);
    let unsigned = folder.join("unsigned.wasm");
    std::fs::write(&unsigned, &plugin).unwrap();
    let case = |source: String, settings, why| Case { source, settings, why };
    vec![
        case(
            pinned(&signed(folder, "curious.wasm", &curious, key)),
            "",
            "it imports wasi:cli/environment@0.2.0",
        ),
        case("builtin:learned".to_owned(), "", "it is not of the world `eligibility`"),
        case(was, "", "is not what was pinned"),
        case(hostile.clone(), "even = 3", "its settings are wrong: even: it is odd"),
        case(hostile, "error-lines = 1", "trying it on an ordinary image: it reports an error"),
        case(pinned(&unsigned), "", "policy.trust.required wants its signature in"),
    ]
}

async fn changes_nothing(case: Case, folder: PathBuf, key: String) {
    let file = folder.join("policies.toml");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, FIRST).unwrap();
    let trust = TrustConfig { public_keys: vec![key], required: Required::All };
    let harness = Harness::start(Config { file: Some(file.clone()), trust, ..config("") }).await.unwrap();
    let Case { source, settings, why } = case;
    let next = format!("[[eligibility]]\nname = 'next'\nsource = '{source}'\nsettings = {{ {settings} }}");
    std::fs::write(&file, next).unwrap();
    let reply = until(&harness, |reply| !reply.last_error.is_empty()).await;
    assert!(reply.last_error.contains(why) && reply.last_error.contains("\"next\""), "{}", reply.last_error);
    assert_eq!((reply.generation, reply.policies[0].name.as_str()), (1, "first"), "{why}");
    let judged = harness.judge(facts()).await;
    assert_eq!((judged.decision(), judged.generation), (Decision::Refuse, 1), "{why}");
    let told = harness.bus.events().recent();
    let [event] = &told[..] else { panic!("{why}: {told:?}") };
    assert_eq!((event.kind(), event.reason.as_str()), (EventKind::PolicySet, "unusable"), "{why}");
    assert!(event.message.contains(why) && event.message.contains("1 stays"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_new_set_the_old_one_answers_and_it_is_said_why() {
    lifecycle::telemetry::install().unwrap();
    let (folder, key) = (tempfile::tempdir().unwrap(), SigningKey::generate().unwrap());
    let failed = || counted("sluice_policy_reloads_total{outcome=\"failed\"}");
    let (before, cases) = (failed(), cases(folder.path(), &key));
    let wrong = cases.len() as u64;
    let public = key.public_pem().unwrap();
    let place = |number: usize| folder.path().join(number.to_string());
    join_all(cases.into_iter().enumerate().map(|(n, case)| changes_nothing(case, place(n), public.clone())))
        .await;
    assert!(failed() >= before + wrong, "not each was counted");
}
