//! Events of Kubernetes (`events.k8s.io/v1`): on the Node that an event is of, and on the Pods that pulled its image.
//!
//! ```text
//! event --> Node, each Pod --> enough for this object lately? --> told before, within minutes: series of that, +n (PATCH)
//!                                                   |         \--> else an object of its own (POST), named by the event's id
//!                                                   '-- yes: left out, counted; a series counts it along
//! ```
//!
//! The name of what is made follows from the event's id: made again, after an answer that got lost or by another replica, it is there
//! already. Which series are open is known to this process alone: after a restart the next repeat begins one anew.

mod api;
mod limit;
mod object;
mod series;

use std::collections::HashMap;
use std::time::Duration;

use futures::future::BoxFuture;
use proto::Event;
use tokio::time::Instant;

use self::api::{Answer, Api};
use self::limit::Limits;
use self::object::Told;
use self::series::{OPEN_FOR, Open, SeriesTable};
use super::{Outcome, Sink};
use crate::config::KubernetesConfig;
use crate::meters;

/// Each is a request or more, one after the other.
const BATCH_MAX: usize = 16;
/// Between two events on how far something is.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

pub(super) struct Kubernetes {
    /// None: what it takes is not there yet.
    api: Option<Api>,
    config: KubernetesConfig,
    series: SeriesTable,
    limits: Limits,
    /// Of events that were told to some of their objects: to how many. No more than one batch.
    partly: HashMap<String, usize>,
}

impl Kubernetes {
    pub(super) async fn new(config: &KubernetesConfig) -> Kubernetes {
        // Tried again with the first event: a token or a file may come later.
        let api = Api::connect(config).await;
        let api = api.inspect_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "Kubernetes cannot be told of events yet");
        });
        Kubernetes {
            api: api.ok(),
            config: config.clone(),
            series: SeriesTable::default(),
            limits: Limits::default(),
            partly: HashMap::new(),
        }
    }

    async fn connect(&mut self) -> Result<Api, Outcome> {
        if let Some(api) = &self.api {
            return Ok(api.clone());
        }
        let connected = Api::connect(&self.config).await;
        let api = connected.map_err(|error| Outcome::again(format!("{error:#}")))?;
        Ok(self.api.insert(api).clone())
    }

    /// To each of its objects, in order; those that were told are not told again.
    async fn tell(&mut self, event: &Event) -> Outcome {
        let api = match self.connect().await {
            Ok(api) => api,
            Err(outcome) => return outcome,
        };
        let told = object::of(event, &self.config);
        let before = self.partly.get(&event.id).copied().unwrap_or(0);
        for (number, told) in told.iter().enumerate().skip(before) {
            match self.tell_one(&api, event, told, Instant::now()).await {
                Answer::Done => {}
                // Of this object nobody can be told; of the others, yes.
                Answer::Never(why) => {
                    tracing::debug!(
                        event = event.id,
                        object = told.object(),
                        why,
                        "Kubernetes takes no event on this"
                    );
                    meters::suppressed();
                }
                Answer::Again { why, after } => {
                    self.partly.insert(event.id.clone(), number);
                    return Outcome::Again { why, after };
                }
                Answer::Gone => {
                    self.partly.insert(event.id.clone(), number);
                    return Outcome::again("an event went away while it was told again");
                }
            }
        }
        self.partly.remove(&event.id);
        Outcome::Done
    }

    async fn tell_one(&mut self, api: &Api, event: &Event, told: &Told, now: Instant) -> Answer {
        let key = told.key();
        let within = if told.is_progress() { PROGRESS_EVERY } else { OPEN_FOR };
        let open = self.series.open(&key, now, within);
        if open.is_some() && told.is_progress() {
            // The next news of it will do.
            return Answer::Done;
        }
        if !self.limits.take(&told.object(), now) {
            meters::suppressed();
            self.series.count_along(&key, event.count);
            return Answer::Done;
        }
        let answer = match open {
            Some(open) => self.again(api, event, told, open, now).await,
            None => self.first(api, event, told, now).await,
        };
        if !matches!(answer, Answer::Done) {
            self.limits.give_back(&told.object());
        }
        answer
    }

    async fn first(&mut self, api: &Api, event: &Event, told: &Told, now: Instant) -> Answer {
        let object = told.event(event);
        let answer = api.create(&object).await;
        if matches!(answer, Answer::Done) {
            self.series.begin(told.key(), told.name(event), event.count, now);
        }
        answer
    }

    async fn again(&mut self, api: &Api, event: &Event, told: &Told, open: Open, now: Instant) -> Answer {
        let count = open.count.saturating_add(event.count);
        match api.patch(told.namespace(), &open.name, &object::series(count, event)).await {
            Answer::Done => {
                self.series.counted(&told.key(), count, now);
                Answer::Done
            }
            // An hour after it was told first, as a rule, or as somebody removed it.
            Answer::Gone => {
                self.series.close(&told.key());
                self.first(api, event, told, now).await
            }
            other => other,
        }
    }
}

impl Sink for Kubernetes {
    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn write<'a>(&'a mut self, events: &'a [Event]) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(events.len());
            for event in events {
                // A server that did not take one will not take the next one.
                let failed = outcomes.last().filter(|last| matches!(last, Outcome::Again { .. })).cloned();
                outcomes.push(match failed {
                    Some(failed) => failed,
                    None => self.tell(event).await,
                });
            }
            outcomes
        })
    }
}
