//! A client of the snapshotter's own socket, as containerd is one.

use std::path::PathBuf;

use proto::containerd::snapshots::snapshots_client::SnapshotsClient;
use proto::containerd::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
};
use proto::containerd::types::Mount;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;

use crate::cri::channel;

/// Blocking: each call drives the runtime that the client owns.
#[derive(Debug)]
pub struct Snapshotter {
    runtime: Runtime,
    client: SnapshotsClient<Channel>,
}

/// What a snapshot takes on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub bytes: i64,
    pub inodes: i64,
}

impl Snapshotter {
    pub fn connect(socket: PathBuf) -> anyhow::Result<Snapshotter> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = SnapshotsClient::new(runtime.block_on(channel(socket))?);
        Ok(Snapshotter { runtime, client })
    }

    pub fn list(&self) -> Result<Vec<Info>, Status> {
        let mut client = self.client.clone();
        self.runtime.block_on(async move {
            let mut parts = client.list(ListSnapshotsRequest::default()).await?.into_inner();
            let mut all = Vec::new();
            while let Some(part) = parts.message().await? {
                all.extend(part.info);
            }
            Ok(all)
        })
    }

    pub fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { key: key.to_owned(), ..StatSnapshotRequest::default() };
        let found = self.runtime.block_on(self.client.clone().stat(request))?.into_inner();
        found.info.ok_or_else(|| Status::internal("an answer without a snapshot"))
    }

    pub fn usage(&self, key: &str) -> Result<Usage, Status> {
        let request = UsageRequest { key: key.to_owned(), ..UsageRequest::default() };
        let used = self.runtime.block_on(self.client.clone().usage(request))?.into_inner();
        Ok(Usage { bytes: used.size, inodes: used.inodes })
    }

    pub fn prepare(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Result<Vec<Mount>, Status> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let request = PrepareSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.iter().map(owned).collect(),
            ..PrepareSnapshotRequest::default()
        };
        Ok(self.runtime.block_on(self.client.clone().prepare(request))?.into_inner().mounts)
    }

    /// With a parent, as containerd 2 gives one to what it unpacked beside the layers below.
    pub fn commit(&self, key: &str, name: &str, parent: &str) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            key: key.to_owned(),
            name: name.to_owned(),
            parent: parent.to_owned(),
            ..CommitSnapshotRequest::default()
        };
        self.runtime.block_on(self.client.clone().commit(request)).map(drop)
    }

    pub fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { key: key.to_owned(), ..RemoveSnapshotRequest::default() };
        self.runtime.block_on(self.client.clone().remove(request)).map(drop)
    }

    pub fn cleanup(&self) -> Result<(), Status> {
        self.runtime.block_on(self.client.clone().cleanup(CleanupRequest::default())).map(drop)
    }
}
