//! collect: deletes stored content that no image names.
//!
//! Mark, then sweep. [`roots`] marks what the image records name, and what an import that was cut short may go on with. [`sweep`]
//! lists the rest, as far as it is older than the grace, and deletes it. While imports run, nothing is collected ([`marker`]).
//!
//! It fails closed: nothing is deleted as long as one record is not believed or cannot be read, as nobody knows what it names;
//! and a part of the store that is larger than [`UNASKED_MAX_PERCENT`] goes only when the images that named it were removed,
//! or with `force`. `force` is for the size alone: a record that is not believed must be removed or believed first.
//!
//! [`UNASKED_MAX_PERCENT`]: sweep::UNASKED_MAX_PERCENT

mod roots;
mod sweep;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use proto::{CollectReply, CollectRequest};
use store::{Kind, ProjectStore, Stored};
use tonic::Status;

use super::Service;
use super::images::Refused;
use crate::marker::{self, Busy};
use roots::Marks;

/// Records that a refusal names; of the others it tells the number.
const NAMED_MAX: usize = 3;
/// What helps when a record is not believed.
const REMEDY: &str = "if it is of a fetcher with another key, add the public key that `sluice config key` prints there to \
                      fetcher.trusted_keys here, or collect there; if it is of use to nobody, `sluice rm --force DIGEST` forgets it";

impl Service {
    pub(super) async fn collect(self: Arc<Self>, request: CollectRequest) -> Result<CollectReply, Status> {
        let project = self.project(&request.project)?;
        let busy = |busy: Busy| match busy {
            Busy::Store(error) => Status::from(error),
            busy => Status::unavailable(format!("collect {}: {busy}", project.name())),
        };
        let marker = marker::collecting(&project, &self.tasks).await.map_err(busy)?;
        let collected = self.mark_and_sweep(&project, &request).await;
        marker.release().await;
        collected
    }

    async fn mark_and_sweep(
        &self,
        project: &ProjectStore,
        request: &CollectRequest,
    ) -> Result<CollectReply, Status> {
        let oldest_kept = SystemTime::now().checked_sub(Duration::from_secs(request.grace_seconds.into()));
        let expired = |stored: &Stored| oldest_kept.is_some_and(|limit| stored.modified <= limit);
        let marks = self.roots(project, &expired).await?;
        let plan = sweep::plan(project, &marks, &expired).await?;
        let mut reply = plan.reply();
        match plan.asks_for_force() {
            Some(reason) if request.dry_run => reply.needs_force = reason,
            Some(reason) if !request.force => return Err(Status::failed_precondition(reason)),
            _ => {}
        }
        all_are_marked(project, &marks).await?;
        if !request.dry_run {
            plan.carry_out(project).await?;
        }
        tracing::info!(
            project = project.name(),
            deleted = reply.deleted,
            deleted_bytes = reply.deleted_bytes,
            kept = reply.kept,
            dry_run = request.dry_run,
            force = request.force,
            "collected"
        );
        Ok(reply)
    }
}

/// Whether each image that the store lists now is one whose content is kept. What else stands among the records may be one that
/// this version does not know.
async fn all_are_marked(project: &ProjectStore, marks: &Marks) -> Result<(), Status> {
    let listed: Vec<_> =
        project.list_all(Kind::Image).try_collect().await.map_err(|error| unread(project, &error))?;
    for listed in listed {
        let reason = match listed.map(|stored| format!("sha256:{}", stored.hex)) {
            Ok(image) if marks.images.contains(&image) => continue,
            Ok(image) => format!("the record of {image} was stored meanwhile, or cannot be found: try again"),
            Err(path) => format!(
                "{path} stands among the image records, and this version knows no such record: collect with a newer version, or \
                 take it away"
            ),
        };
        return Err(unread(project, &reason));
    }
    Ok(())
}

/// What could not be read to its end says nothing of what is in use.
fn unread(project: &ProjectStore, reason: &dyn std::fmt::Display) -> Status {
    Status::failed_precondition(format!("collect {}: nothing is deleted: {reason}", project.name()))
}

/// Why nothing is deleted.
fn refusal(project: &ProjectStore, kind: &str, refused: &[Refused]) -> Status {
    let named: Vec<String> = refused
        .iter()
        .take(NAMED_MAX)
        .map(|refused| format!("{} ({})", refused.digest, refused.refusal))
        .collect();
    let more = match refused.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Status::failed_precondition(format!(
        "collect {}: not every {kind} record can be believed, so nobody knows what is in use, and nothing is deleted: {}{more}; {REMEDY}",
        project.name(),
        named.join(", ")
    ))
}
