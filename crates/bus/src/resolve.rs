//! An image from its name: ask, follow the import if there is one, and ask anew when the fetcher that ran it went away.
//!
//! ```text
//! resolve --> resolved
//!        \--> importing --follow--> importing … resolved
//!                          \--> the fetcher is gone: resolve again, bounded
//! ```

use std::time::Duration;

use proto::resolve_reply::Answer;
use proto::{FollowRequest, ImportTicket, ResolveReply, ResolveRequest, Resolved};
use tonic::{Code, Status};

use crate::Bus;

/// How long one question about an import stays open when nothing changes. Short enough that a lost answer is soon asked again.
const FOLLOW_WAIT: Duration = Duration::from_secs(5);
/// What the answer itself may take beyond that.
const FOLLOW_SLACK: Duration = Duration::from_secs(10);
/// How often an import is asked for anew when the fetcher that ran it went away.
const RESUMES_MAX: u32 = 5;

/// What happens on the way.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// The import is this far.
    Importing(&'a ImportTicket),
    /// The fetcher that ran the import went away, and the image is asked for anew.
    Resuming(&'a Status),
}

impl Bus {
    /// Asks until the image is imported. `answer`: how long a fetcher may take to say anything at all. `on` hears each step; its
    /// error ends the asking, but not the import.
    pub async fn resolve(
        &self,
        request: &ResolveRequest,
        answer: Duration,
        mut on: impl FnMut(Step<'_>) -> Result<(), Status>,
    ) -> Result<Resolved, Status> {
        let mut resumes = 0;
        let mut reply = self.call(request.clone(), answer).await?;
        loop {
            let ticket = match reply.answer {
                Some(Answer::Resolved(resolved)) => return Ok(resolved),
                Some(Answer::Importing(ticket)) => ticket,
                None => return Err(Status::internal("the fetcher answered resolve with nothing")),
            };
            on(Step::Importing(&ticket))?;
            reply = match self.follow(request, &ticket).await {
                Err(status) if is_gone(&status) && resumes < RESUMES_MAX => {
                    resumes += 1;
                    on(Step::Resuming(&status))?;
                    self.call(request.clone(), answer).await?
                }
                other => other?,
            };
        }
    }

    async fn follow(&self, asked: &ResolveRequest, ticket: &ImportTicket) -> Result<ResolveReply, Status> {
        let request = FollowRequest {
            ticket: ticket.ticket.clone(),
            wait_ms: FOLLOW_WAIT.as_millis() as u32,
            seen_revision: ticket.progress.as_ref().map_or(0, |progress| progress.revision),
            project: asked.project.clone(),
            node: asked.node.clone(),
        };
        self.call_instance(&ticket.instance, request, FOLLOW_WAIT + FOLLOW_SLACK).await
    }
}

/// Whether the fetcher that ran an import forgot it, or is away. That something of the image is not found is how an import ends.
fn is_gone(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}
