//! The CRI's image service, between the kubelet and containerd: it hands every call on as it came, keeps the credential of a pull for
//! as long as that pull goes on, and remembers which pod it is for.
//!
//! ```text
//! kubelet --image-service-endpoint--> here --> containerd --Prepare, a layer--> snapshots --> whose credential is it?
//! ```
//!
//! Bytes are handed on untouched: what a newer kubelet says that we do not know reaches containerd all the same.
//! Source: k8s.io/cri-api, `runtime.v1`; `v1alpha2` has the same fields.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Buf as _, Bytes};
use credentials::{Pull, Sources};
use prost::Message as _;
use proto::Pod;
use proto::cri::{PodSandboxMetadata, PullImageRequest};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{Service as _, ServiceExt as _};

use crate::ending::Ending;
use crate::events::NodeEvents;

/// The calls that are handed on: a kubelet's. The rest of containerd has its own socket.
const SERVICES: [&str; 2] = ["/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/"];
const PULL: &str = "PullImage";
/// What a request for a pull may take, in bytes; it holds the pod's configuration, and has some KiB.
const PULL_MAX: usize = 4 * 1024 * 1024;

#[derive(Clone)]
struct Door {
    runtime: Channel,
    pulls: Pulls,
}

/// Who is told of pulls.
#[derive(Clone)]
pub(crate) struct Pulls {
    pub(crate) credentials: Arc<Sources>,
    pub(crate) events: NodeEvents,
}

/// Serves until `shutdown`. `runtime`: containerd's socket, which need not be there yet.
pub(crate) async fn serve(
    listener: UnixListener,
    runtime: &Path,
    pulls: Pulls,
    ending: &Ending,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let door = Door { runtime: channel(runtime.to_owned()), pulls };
    let routes = Routes::from(axum::Router::new().fallback(hand_on).with_state(door));
    ending
        .server()
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned())
        .await
}

/// Connects when it is used, and again after containerd was restarted.
fn channel(socket: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    // The address is never looked at: the socket is.
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(connect)
}

async fn hand_on(State(door): State<Door>, request: Request) -> Response {
    door.hand_on(request).await.unwrap_or_else(|status| status.into_http())
}

impl Door {
    async fn hand_on(mut self, request: Request) -> Result<Response, Status> {
        let path = request.uri().path().to_owned();
        let Some(call) = SERVICES.iter().find_map(|service| path.strip_prefix(service)) else {
            return Err(Status::unimplemented(format!("{path} is not of the image service")));
        };
        // An answer to a pull begins when the pull has ended; whoever gives up drops this.
        let (request, _pull) = if call == PULL { self.remember(request).await? } else { (request, None) };
        let request = request.map(tonic::body::Body::new);
        let runtime = self.runtime.ready().await;
        let answered = async { runtime?.call(request).await }.await;
        let response = answered.map_err(|error| {
            Status::unavailable(format!("containerd does not answer {path}: {}", root_cause(&error)))
        })?;
        Ok(response.map(Body::new))
    }

    /// Makes the credential of a pull known until what is returned beside the request is dropped.
    async fn remember(&self, request: Request) -> Result<(Request, Option<Pull>), Status> {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, PULL_MAX).await.map_err(|error| {
            Status::resource_exhausted(format!("the request to pull an image is not read: {error}"))
        })?;
        let pull = decoded(body.clone()).and_then(|pull| self.pulls.begin(pull));
        Ok((Request::from_parts(head, Body::from(body)), pull))
    }
}

impl Pulls {
    fn begin(&self, PullImageRequest { image, auth, sandbox_config }: PullImageRequest) -> Option<Pull> {
        let image = image?.image;
        if let Some(PodSandboxMetadata { name, uid, namespace, .. }) =
            sandbox_config.and_then(|sandbox| sandbox.metadata)
        {
            self.events.pulled(&image, Pod { namespace, name, uid });
        }
        self.credentials.begin_pull(&image, auth?)
    }
}

/// The one message of a request, behind one byte that says whether it is compressed and four with its length; none when we do not understand it, which is for containerd to tell.
fn decoded(mut body: Bytes) -> Option<PullImageRequest> {
    let (compressed, len) = (body.try_get_u8().ok()?, body.try_get_u32().ok()?);
    let whole = compressed == 0 && body.len() == len as usize;
    if whole { PullImageRequest::decode(body).ok() } else { None }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use prost::bytes::BufMut as _;
    use proto::cri::{AuthConfig, ImageSpec};

    use super::*;

    fn framed(message: &PullImageRequest, compressed: u8, more: u32) -> Bytes {
        let mut body = Vec::new();
        body.put_u8(compressed);
        body.put_u32(message.encoded_len() as u32 + more);
        body.extend_from_slice(&message.encode_to_vec());
        body.into()
    }

    #[test]
    fn reads_a_whole_plain_message_and_nothing_else() {
        let auth = AuthConfig { username: "user".to_owned(), ..AuthConfig::default() };
        let message = PullImageRequest {
            image: Some(ImageSpec { image: "a".to_owned() }),
            auth: Some(auth),
            sandbox_config: None,
        };
        assert_eq!(decoded(framed(&message, 0, 0)), Some(message.clone()));
        assert_eq!(decoded(framed(&message, 1, 0)), None);
        assert_eq!(decoded(framed(&message, 0, 1)), None);
        assert_eq!(decoded(Bytes::from_static(b"\0\0\0")), None);
        assert_eq!(decoded(Bytes::from_static(b"\0\0\0\0\x02\xff\xff")), None);
    }
}
