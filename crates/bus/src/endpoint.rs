//! The answering side, the same for every transport: admit, decode, handle, always reply.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use proto::{Call, Refusal};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::wire;

/// The longest a handler may take, whatever a caller asks for: a forgotten request must end.
const DEADLINE_MAX: Duration = Duration::from_secs(60 * 60);

type Handler = Box<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Status>> + Send + Sync>;

/// A handler, and who may run it now.
pub(crate) struct Endpoint {
    subject: &'static str,
    handler: Handler,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Endpoint {
    pub(crate) fn new<C, H, F>(in_flight: usize, handler: H) -> Endpoint
    where
        C: Call,
        H: Fn(C) -> F + Send + Sync + 'static,
        F: Future<Output = Result<C::Reply, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let handler: Handler = Box::new(move |payload| {
            let handler = handler.clone();
            Box::pin(async move {
                let request: C = wire::decode_request(C::SUBJECT, payload)?;
                wire::encode_reply(C::SUBJECT, &handler(request).await?)
            })
        });
        let permits = Arc::new(Semaphore::new(in_flight.min(Semaphore::MAX_PERMITS)));
        Endpoint { subject: C::SUBJECT, handler, permits, tasks: TaskTracker::new() }
    }

    /// What runs for this endpoint: its handlers, and the loops that feed it.
    pub(crate) fn tasks(&self) -> TaskTracker {
        self.tasks.clone()
    }

    /// Handles one request in a task of its own and gives the outcome to `reply`; when busy,
    /// replies so without a task, which keeps a flood of requests from becoming a flood of tasks.
    pub(crate) async fn accept<R, F>(self: &Arc<Self>, payload: Bytes, deadline: Duration, reply: R)
    where
        R: FnOnce(Result<Bytes, Status>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            tracing::warn!(subject = self.subject, "refused a request: busy");
            return reply(Err(Refusal::Busy.status(format!("{} is busy", self.subject)))).await;
        };
        let endpoint = self.clone();
        self.tasks.spawn(async move {
            let outcome = endpoint.handle(payload, deadline.min(DEADLINE_MAX)).await;
            drop(permit);
            reply(outcome).await;
        });
    }

    async fn handle(&self, payload: Bytes, deadline: Duration) -> Result<Bytes, Status> {
        let handled = AssertUnwindSafe(async { (self.handler)(payload).await }).catch_unwind();
        match tokio::time::timeout(deadline, handled).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_panic)) => Err(Status::internal(format!("the handler of {} panicked", self.subject))),
            Err(_) => Err(wire::deadline_exceeded(self.subject, deadline)),
        }
    }
}
