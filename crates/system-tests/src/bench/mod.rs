//! Measures a node under containerd: sluice beside containerd's own overlayfs, in one run, behind one simulated link; and,
//! by itself, the policy service ([`policies`]), and what holds a mesh together ([`mesh`]).
//!
//! ```text
//!                       registry --.
//! fetcher, cache, store,    NATS --+--[simulated link]-->  a cold node: containerd, and the frontend or overlayfs
//! on this side of the link  cache --'
//! ```
//!
//! Nothing is asserted: what comes out are numbers, and ratios of medians over rounds that alternate between the two.

mod beside;
pub mod cold;
pub mod killed;
pub mod many;
pub mod mesh;
pub mod policies;
pub mod prepare;
pub mod ready;
pub mod site;
pub mod starts;

use serde_json::Value;

/// The middle one; of an even number the mean of the two in the middle; of nothing, not a number.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match (numbers.len(), numbers.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => numbers[middle],
        (_, middle) => f64::midpoint(numbers[middle - 1], numbers[middle]),
    }
}

/// The median of each number of equal objects by itself.
fn medians(rounds: &[Value]) -> Value {
    let Some(first) = rounds.first().and_then(Value::as_object) else { return Value::Null };
    let of = |name: &String| median(rounds.iter().filter_map(|round| round[name].as_f64()).collect());
    first.keys().map(|name| (name.clone(), of(name).into())).collect::<serde_json::Map<_, _>>().into()
}

/// One number of a measurement by another one.
fn ratio(over: &Value, under: &Value, name: &str) -> Option<f64> {
    Some(over[name].as_f64()? / under[name].as_f64()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_number_has_a_median_of_its_own() {
        let rounds = [json!({"a": 3.0, "b": 1.0}), json!({"a": 1.0, "b": 2.0}), json!({"a": 2.0, "b": 9.0})];
        assert_eq!(medians(&rounds), json!({"a": 2.0, "b": 2.0}));
        assert_eq!(medians(&rounds[..2]), json!({"a": 2.0, "b": 1.5}));
        assert_eq!(medians(&[]), Value::Null);
        assert_eq!(ratio(&rounds[0], &rounds[1], "a"), Some(3.0));
    }
}
