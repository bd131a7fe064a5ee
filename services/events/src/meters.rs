//! What the service counts, by sink.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge};
use proto::Event;

const DELIVERED: &str = "sluice_events_delivered_total";
/// Attempts that are made again.
const RETRIED: &str = "sluice_events_retried_total";
/// Events that a sink will never take, or not within their time.
const GIVEN_UP: &str = "sluice_events_given_up_total";
/// Events of Kubernetes that were left out, as there were too many of one object.
const SUPPRESSED: &str = "sluice_events_suppressed_total";
/// 1 while a sink takes events, 0 while it does not.
const WORKS: &str = "sluice_events_sink_works";
/// How old an event was when it was written.
const LAG: &str = "sluice_events_sink_lag_seconds";

pub(crate) fn delivered(sink: &str, event: &Event) {
    counter!(DELIVERED, "sink" => sink.to_owned()).increment(1);
    gauge!(LAG, "sink" => sink.to_owned()).set(age(event).as_secs_f64());
}

pub(crate) fn retried(sink: &str, events: usize) {
    counter!(RETRIED, "sink" => sink.to_owned()).increment(events as u64);
}

pub(crate) fn given_up(sink: &str) {
    counter!(GIVEN_UP, "sink" => sink.to_owned()).increment(1);
}

pub(crate) fn suppressed() {
    counter!(SUPPRESSED).increment(1);
}

pub(crate) fn works(sink: &str, works: bool) {
    gauge!(WORKS, "sink" => sink.to_owned()).set(if works { 1.0 } else { 0.0 });
}

/// Since it happened, by the clocks of who told it and of this machine.
pub(crate) fn age(event: &Event) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(event.at_ms))
}
