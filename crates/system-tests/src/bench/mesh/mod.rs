//! Measures what holds a mesh together: what TLS, grants and quotas cost who streams and who starts, beside a mesh without them in the
//! same run; and the quota, events and identity services by themselves, as processes on a real NATS server.
//!
//! Rounds of the two sides alternate, and who begins changes; a ratio is the median of the ratios of rounds that stand beside each other.

mod claims;
mod enrolling;
mod events;
mod side;
mod spending;
mod starts;
mod streams;
mod windows;

use serde_json::{Map, Value};

pub use events::emit;

use super::median;

/// All that can be measured, by name.
pub const PARTS: [&str; 8] =
    ["streams", "check", "starts", "spend", "claim", "windows", "events", "enrolment"];

/// One of [`PARTS`].
pub fn measure(part: &str, quick: bool) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match part {
            "streams" => streams::measure(if quick { 3 } else { 15 }).await,
            "check" => streams::measure_check(if quick { 3 } else { 9 }).await,
            "starts" => starts::measure(if quick { 3 } else { 21 }).await,
            "spend" => spending::measure(if quick { 3 } else { 9 }).await,
            "claim" => claims::measure(if quick { 1_000 } else { 10_000 }).await,
            "windows" => windows::measure(if quick { 1 } else { 3 }).await,
            "events" => events::measure(if quick { 5 } else { 30 }).await,
            "enrolment" => enrolling::measure(if quick { 100 } else { 1_000 }).await,
            _ => anyhow::bail!("{part} is none of {PARTS:?}"),
        }
    })
}

/// What both sides took in a round.
#[derive(Clone, Copy, Debug)]
struct Round {
    off: f64,
    on: f64,
}

/// The median of each side, and of the ratios of rounds: on / off.
fn sides(rounds: &[Round]) -> Value {
    let of = |pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
    let mut ratios: Vec<f64> = rounds.iter().map(|round| round.on / round.off).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |quarter: usize| ratios.get(ratios.len() * quarter / 4).copied().unwrap_or(f64::NAN);
    let named = [
        ("off", of(|round| round.off)),
        ("on", of(|round| round.on)),
        ("ratio", median(ratios.clone())),
        ("ratio_lower_quartile", at(1)),
        ("ratio_upper_quartile", at(3)),
        ("rounds", rounds.len() as f64),
    ];
    named.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<Map<_, _>>().into()
}

/// In the unit of what was measured.
fn quantiles(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
    serde_json::json!({ "p50": at(0.5), "p99": at(0.99), "max": times.last(), "count": times.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_rounds_beside_each_other() {
        // The machine became slow in the middle: both sides did.
        let rounds = [(1.0, 1.1), (1.0, 1.1), (3.0, 3.3)].map(|(off, on)| Round { off, on });
        let sides = sides(&rounds);
        assert!((sides["ratio"].as_f64().unwrap() - 1.1).abs() < 1e-9, "{sides}");
        assert_eq!(quantiles((0..100).map(f64::from).collect())["p99"], 99.0);
    }
}
