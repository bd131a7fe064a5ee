//! The same with containerds of other lines than the one that is installed: each has rules of its own.
//! `SLUICE_CONTAINERD=1.7`, `2`, `2.3` or `2.4` runs all other tests with one of them.

use system_tests::kubernetes::Options;
use testkit::containerd::{Annotations, Version};

use crate::mixed::unpacks_layers_over_streamed_ones;
use crate::snapshotter::{pulls_as_ever_without_annotations, streams_and_leaves_nothing};
use crate::unpacked::equals_an_unpacked_snapshot;

fn with(containerd: Version) -> Options {
    Options { containerd, ..Options::default() }
}

#[test]
fn with_containerd_1_7_a_container_streams_and_leaves_nothing_behind() -> anyhow::Result<()> {
    streams_and_leaves_nothing(&with(Version::V1_7))
}

#[test]
fn with_containerd_1_7_a_streamed_snapshot_equals_an_unpacked_one() -> anyhow::Result<()> {
    equals_an_unpacked_snapshot(&with(Version::V1_7))
}

#[test]
fn with_containerd_2_a_container_streams_and_leaves_nothing_behind() -> anyhow::Result<()> {
    streams_and_leaves_nothing(&with(Version::V2))
}

#[test]
fn with_containerd_2_a_streamed_snapshot_equals_an_unpacked_one() -> anyhow::Result<()> {
    equals_an_unpacked_snapshot(&with(Version::V2))
}

#[test]
fn with_containerd_2_an_image_without_annotations_is_pulled_as_ever() -> anyhow::Result<()> {
    pulls_as_ever_without_annotations(&with(Version::V2))
}

#[test]
fn what_containerd_2s_transfer_service_pulls_streams_too() -> anyhow::Result<()> {
    streams_and_leaves_nothing(&Options { annotations: Annotations::ByTransfer, ..with(Version::V2) })
}

#[test]
fn with_containerd_2_4_a_container_streams_and_leaves_nothing_behind() -> anyhow::Result<()> {
    if !Version::V2_4.is_here() {
        return Ok(());
    }
    streams_and_leaves_nothing(&with(Version::V2_4))
}

#[test]
fn with_containerd_2_4_a_streamed_snapshot_equals_an_unpacked_one() -> anyhow::Result<()> {
    if !Version::V2_4.is_here() {
        return Ok(());
    }
    equals_an_unpacked_snapshot(&with(Version::V2_4))
}

#[test]
fn with_containerd_2_4_unpacked_layers_stand_over_streamed_ones() -> anyhow::Result<()> {
    if !Version::V2_4.is_here() {
        return Ok(());
    }
    unpacks_layers_over_streamed_ones(&with(Version::V2_4))
}
