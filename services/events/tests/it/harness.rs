//! A service in this process, and receivers that answer by a script and write down what they got.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use bus::Bus;
use events::{Config, SinkConfig, Sinks};
use proto::{Event, EventKind};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Long enough for a busy machine; no test waits for it when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// What a receiver was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) raw: Bytes,
    pub(crate) body: Value,
}

/// How it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Status(u16),
    /// With `Retry-After`.
    RetryAfter(u16, &'static str),
    Json(u16, Value),
    /// After so long.
    Slow(Duration, u16),
    /// Never.
    Hang,
}

#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    state: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    asked: Vec<Asked>,
    answers: VecDeque<Answer>,
    then: Answer,
}

impl Receiver {
    /// Gives these answers, in order, and then the last one for ever.
    pub(crate) async fn start(answers: impl IntoIterator<Item = Answer>, then: Answer) -> Receiver {
        let script = Script { asked: Vec::new(), answers: answers.into_iter().collect(), then };
        let state = Arc::new(Mutex::new(script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(receive).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Receiver { url, state }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    pub(crate) fn now_answers(&self, answer: Answer) {
        let mut script = self.state.lock().unwrap();
        script.answers.clear();
        script.then = answer;
    }

    /// Waits until what was asked is as it should be.
    pub(crate) async fn until(&self, wanted: impl Fn(&[Asked]) -> bool) -> Vec<Asked> {
        let looked = async {
            while !wanted(&self.asked()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = tokio::time::timeout(SOON, looked).await;
        assert!(outcome.is_ok(), "{:#?}", self.asked());
        self.asked()
    }
}

async fn receive(
    State(state): State<Arc<Mutex<Script>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    raw: Bytes,
) -> Response {
    let answer = {
        let mut script = state.lock().unwrap();
        let body = serde_json::from_slice(&raw).unwrap_or_default();
        script.asked.push(Asked { method, path: uri.path().to_owned(), headers, raw, body });
        script.answers.pop_front().unwrap_or_else(|| script.then.clone())
    };
    let status = |code| StatusCode::from_u16(code).unwrap();
    match answer {
        Answer::Status(code) => status(code).into_response(),
        Answer::RetryAfter(code, after) => (status(code), [("retry-after", after)]).into_response(),
        Answer::Json(code, body) => (status(code), body.to_string()).into_response(),
        Answer::Slow(pause, code) => {
            tokio::time::sleep(pause).await;
            status(code).into_response()
        }
        Answer::Hang => pending().await,
    }
}

/// A service that ends when dropped.
pub(crate) struct Service {
    pub(crate) bus: Bus,
    pub(crate) sinks: Sinks,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Service {
    pub(crate) async fn start(sinks: &[(&str, SinkConfig)]) -> Service {
        Service::on(Bus::in_process(), sinks).await
    }

    pub(crate) async fn on(bus: Bus, sinks: &[(&str, SinkConfig)]) -> Service {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let sinks = sinks.iter().map(|(name, sink)| ((*name).to_owned(), sink.clone())).collect();
        let config = Config { sinks, ..Config::default() };
        let sinks = Sinks::start(config, bus.clone(), &tasks, shutdown.clone()).await.unwrap();
        let service = Service { bus, sinks, tasks, shutdown };
        service.ready().await;
        service
    }

    /// Waits until events are kept.
    async fn ready(&self) {
        let probe = self.sinks.probe();
        let looked = async {
            while probe().await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, looked).await.expect("the stream was not opened");
    }

    /// Ends it as a signal does.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.expect("the service does not end");
    }

    pub(crate) fn tell(&self, event: Event) {
        self.bus.events().tell(event);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// One of an image of this name, on a node.
pub(crate) fn event(kind: EventKind, reason: &str, image: &str) -> Event {
    let message = match kind {
        EventKind::Streaming => format!("Image {image} is backed by image streaming."),
        _ => "so it is".to_owned(),
    };
    Event {
        service: "frontend".to_owned(),
        node: "node-1".to_owned(),
        image: image.to_owned(),
        ..Event::new(kind, reason, message)
    }
}
