//! Where a process may not use the address space that a pool of instances takes, policies run without one.

use std::fs;
use std::process::{Command, Output};

use serde_json::json;
use system_tests::{Scratch, binaries, noise};
use testkit::{ImageSpec, LayoutWriter, Tarball};

/// Of address space, in bytes: the pool takes several times as much, a few instances a small part of it.
const ADDRESSES: u64 = 64 << 30;
const NOT_ELIGIBLE: i32 = 3;

fn sluice(scratch: &Scratch, limited: bool, arguments: &[&str]) -> anyhow::Result<Output> {
    let command = scratch.command(arguments)?;
    if !limited {
        return Ok({ command }.output()?);
    }
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--as={ADDRESSES}")).arg(command.get_program()).args(command.get_args());
    Ok(limited.output()?)
}

#[test]
fn without_address_space_for_a_pool_policies_decide_and_are_bounded_as_ever() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let plugin = binaries::plugin("tests/hostile.wasm")?;
    let source = format!("file:{}@{}", plugin.display(), testkit::layout::sha256(&fs::read(&plugin)?));
    let set = format!("policy.set.eligibility=[{{name=\"mine\", source=\"{source}\"}}]");
    for (limited, said) in [(false, "come from a pool"), (true, "come from no pool")] {
        let listed = sluice(&scratch, limited, &["--set", &set, "policy", "ls"])?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("mine") && listed.contains(said), "{listed}");
    }
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    // A busy machine is no part of what is tested.
    let patience = ["policy.limits.time=2s", "policy.limits.total_time=5s", "fetcher.judging.wait=20s"];
    let patience = patience.map(|setting| ["--set", setting]).concat();
    let kinds = [("allocate", "memory"), ("recurse", "stack"), ("outside", "trap")]
        .map(|(how, kind)| (how, json!(kind)));
    for (how, failure) in [("not", json!(null))].into_iter().chain(kinds) {
        let config = json!({ "Labels": { "misbehave": how } });
        let tar = Tarball::new().file("file", &noise(1, 10_000)).finish();
        layout.image(how, &ImageSpec { config: Some(config), ..ImageSpec::new([tar]) })?;
        let image = layout.reference(how);
        let asked = [&patience[..], &["--set", &set, "--json", "inspect", &image]].concat();
        let output = sluice(&scratch, true, &asked)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let inspected: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| anyhow::anyhow!("{how}: {error}: {errors}"))?;
        assert_eq!(inspected["policies"][0]["failure"], failure, "{how}: {inspected}");
        let exit = if failure.is_null() { 0 } else { NOT_ELIGIBLE };
        assert_eq!(output.status.code(), Some(exit), "{how}: {errors}");
        assert!(errors.contains("no pool for policy instances"), "{errors}");
    }
    Ok(())
}
