//! How this process ends: soon. While it does, nobody answers the kernel, and whoever reads waits; what it was doing can be
//! begun anew by the next process, as after a kill.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::codegen::http::{Request, Response};
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};
use tower::{Layer, Service};

/// What is under way when the end comes has so long.
const GRACE: Duration = Duration::from_millis(500);

/// Runs what ends with the process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Ending {
    pub(crate) fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Ending {
        Ending { tasks, shutdown }
    }

    /// Runs `work`; the end of the process makes nothing of it.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        let over = over(self.shutdown.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                done = work => Some(done),
                () = over => None,
            }
        })
    }

    /// Ends the process, unless it ends already, when it is called: without `what` nobody is served, and the next process does.
    pub(crate) fn end_unless_ending(&self, what: &'static str) -> impl FnOnce() + Send + 'static {
        let shutdown = self.shutdown.clone();
        move || {
            if !shutdown.is_cancelled() {
                tracing::error!(what, "it ended, and the frontend with it");
                shutdown.cancel();
            }
        }
    }

    /// A gRPC server whose calls end with the process. Who called asks the next one.
    pub(crate) fn server(&self) -> Server<Stack<Cut, Identity>> {
        Server::builder().layer(Cut { shutdown: self.shutdown.clone() })
    }
}

async fn over(shutdown: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

/// What a call learns that the end of the process cut off.
pub(crate) fn cut_off() -> Status {
    Status::unavailable("the frontend is ending: ask again")
}

#[derive(Clone, Debug)]
pub(crate) struct Cut {
    shutdown: CancellationToken,
}

#[derive(Clone, Debug)]
pub(crate) struct CutService<S> {
    inner: S,
    shutdown: CancellationToken,
}

impl<S> Layer<S> for Cut {
    type Service = CutService<S>;

    fn layer(&self, inner: S) -> CutService<S> {
        CutService { inner, shutdown: self.shutdown.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for CutService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (call, over) = (self.inner.call(request), over(self.shutdown.clone()));
        Box::pin(async move {
            tokio::select! {
                biased;
                answered = call => answered,
                () = over => Ok(cut_off().into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_than_the_end_is_cut_off() {
        let shutdown = CancellationToken::new();
        let ending = Ending::new(TaskTracker::new(), shutdown.clone());
        let (short, long) = (ending.spawn(async { 1 }), ending.spawn(std::future::pending::<()>()));
        let server = Cut { shutdown: shutdown.clone() };
        let never =
            tower::service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, Status>>());
        let call = tokio::spawn(server.layer(never).call(Request::new(())));
        assert_eq!(short.await.unwrap(), Some(1));
        tokio::time::sleep(GRACE * 10).await;
        assert!(!long.is_finished() && !call.is_finished());
        shutdown.cancel();
        assert_eq!(long.await.unwrap(), None);
        let answer = call.await.unwrap().unwrap();
        assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), tonic::Code::Unavailable);
    }
}
