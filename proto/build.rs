//! Compiles the contract with a pure-Rust protobuf compiler, so that a build needs no `protoc`.

fn main() -> anyhow::Result<()> {
    let files = [
        "sluice/v1/mesh.proto",
        "sluice/v1/content.proto",
        "sluice/v1/events.proto",
        "sluice/v1/node.proto",
        "sluice/v1/quota.proto",
        "sluice/v1/identity.proto",
        "containerd/snapshots.proto",
        "containerd/images.proto",
        "containerd/content.proto",
        "cri/runtime.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    let mut configuration = tonic_prost_build::configure().bytes(".sluice.v1.ChunkFrame.data");
    // Authors of policies write facts down, and read them.
    for message in ["Facts", "Pair", "ImageFacts", "LayerFacts", "AskerFacts", "Platform"] {
        let derive = "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default, deny_unknown_fields)]";
        configuration = configuration.message_attribute(format!(".sluice.v1.{message}"), derive);
    }
    // And these the command prints.
    for message in ["PoliciesReply", "LoadedPolicy", "PolicySetting"] {
        configuration =
            configuration.message_attribute(format!(".sluice.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    configuration.compile_fds(descriptors)?;
    Ok(())
}
