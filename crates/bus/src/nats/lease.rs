//! Leases in a JetStream key-value bucket.
//!
//! A held lease is a value that ends by itself: every write carries the expected last revision, so
//! that one writer wins, and a time to live, so that a dead holder's value goes. Writes are made by
//! hand and not through the bucket's `create`, which forgets the time to live when it takes over an
//! expired name.
//!
//! States: free (no value, or a marker that says it expired or was given back) -> held (a value,
//! rewritten every third of its life) -> free. The revision is compared in every step.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Nats;
use crate::key;
use crate::lease::Lease;

const BUCKET: &str = "sluice-leases";
/// How long the marker of a freed lease stays; any positive time does.
const MARKER_LIFE: Duration = Duration::from_secs(30);
/// NATS counts lives in whole seconds.
const TTL_MIN: Duration = Duration::from_secs(1);
/// How long giving a lease back may take; after that it expires.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// What one attempt to write the value came to.
enum Written {
    Revision(u64),
    /// Somebody else wrote since.
    Conflict,
}

/// Everything that is needed to renew one lease.
struct Keeper {
    bucket: kv::Store,
    context: jetstream::Context,
    key: String,
    ttl: Duration,
    revision: u64,
}

impl Nats {
    pub(crate) async fn lease(&self, name: &str, ttl: Duration) -> Result<Option<Lease>, Status> {
        let bucket = self.leases.get_or_try_init(|| self.open_leases()).await?.clone();
        let context = jetstream::new(self.client.clone());
        let ttl = Duration::from_secs(ttl.max(TTL_MIN).as_secs());
        let mut keeper =
            Keeper { bucket, context, key: format!("lease/{}", key::escaped(name)), ttl, revision: 0 };
        if !keeper.acquire().await? {
            return Ok(None);
        }
        let (lost, release) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(keeper.keep(lost.clone(), release.clone()));
        Ok(Some(Lease::nats(lost, release, task)))
    }

    async fn open_leases(&self) -> Result<kv::Store, Status> {
        let config = kv::Config {
            bucket: BUCKET.to_owned(),
            description: "who does what only one may do".to_owned(),
            history: 1,
            limit_markers: Some(MARKER_LIFE),
            num_replicas: self.replicas,
            ..kv::Config::default()
        };
        jetstream::new(self.client.clone())
            .create_or_update_key_value(config)
            .await
            .map_err(|error| Status::unavailable(format!("opening the lease bucket {BUCKET}: {error}")))
    }
}

impl Keeper {
    /// Takes the lease when it is free.
    async fn acquire(&mut self) -> Result<bool, Status> {
        let failed = |error: &dyn std::fmt::Display| Status::unavailable(format!("taking a lease: {error}"));
        let mut last = 0;
        // Twice: the first conflict may be with the marker of a lease that is free.
        for _ in 0..2 {
            match self.write(last).await.map_err(|error| failed(&error))? {
                Written::Revision(revision) => {
                    self.revision = revision;
                    return Ok(true);
                }
                Written::Conflict => {}
            }
            last = match self.bucket.entry(self.key.clone()).await.map_err(|error| failed(&error))? {
                Some(entry) if entry.operation == Operation::Put => return Ok(false),
                Some(marker) => marker.revision,
                None => 0,
            };
        }
        Ok(false)
    }

    async fn keep(mut self, lost: CancellationToken, release: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            if release.run_until_cancelled(tokio::time::sleep(self.ttl / 3)).await.is_none() {
                break;
            }
            let asked = Instant::now();
            match tokio::time::timeout(self.ttl / 3, self.write(self.revision)).await {
                Ok(Ok(Written::Revision(revision))) => (self.revision, renewed) = (revision, asked),
                Ok(Ok(Written::Conflict)) => return self.lose(&lost),
                // A renewal that was made, but whose confirmation was lost, conflicts next time:
                // the lease is then given up rather than held by two.
                Ok(Err(_)) | Err(_) if renewed.elapsed() < self.ttl * 2 / 3 => {}
                Ok(Err(_)) | Err(_) => return self.lose(&lost),
            }
        }
        let released = self.bucket.purge_expect_revision_with_ttl(&self.key, self.revision, MARKER_LIFE);
        if !matches!(tokio::time::timeout(RELEASE_MAX, released).await, Ok(Ok(()))) {
            tracing::debug!(lease = self.key, "a lease was not given back; it expires");
        }
    }

    fn lose(&self, lost: &CancellationToken) {
        tracing::warn!(lease = self.key, "lost a lease");
        lost.cancel();
    }

    async fn write(&self, last: u64) -> Result<Written, jetstream::context::PublishError> {
        let message = PublishMessage::build()
            .payload(Bytes::from_static(b"held"))
            .expected_last_subject_sequence(last)
            .ttl(self.ttl);
        let subject = format!("{}{}", self.bucket.prefix, self.key);
        match self.context.send_publish(subject, message).await?.await {
            Ok(confirmed) => Ok(Written::Revision(confirmed.sequence)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(Written::Conflict),
            Err(error) => Err(error),
        }
    }
}
