//! Compiles the contract with a pure-Rust protobuf compiler, so that a build needs no `protoc`.

fn main() -> anyhow::Result<()> {
    let files = [
        "sluice/v1/mesh.proto",
        "sluice/v1/content.proto",
        "sluice/v1/node.proto",
        "containerd/snapshots.proto",
        "containerd/images.proto",
        "containerd/content.proto",
        "cri/runtime.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".sluice.v1.ChunkFrame.data").compile_fds(descriptors)?;
    Ok(())
}
