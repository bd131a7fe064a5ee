//! Durations as Go prints them, and with it Kubernetes.

use std::time::Duration;

/// `1.536908032s`, `2m0.5s`, `1h0m0s`, `250ms`, `1.5µs`, `0s`.
pub fn go_duration(duration: Duration) -> String {
    let (seconds, nanoseconds) = (duration.as_secs(), duration.subsec_nanos());
    if seconds == 0 {
        return match nanoseconds {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanoseconds}ns"),
            1_000..1_000_000 => format!("{}µs", with_fraction(0, nanoseconds, 1_000)),
            _ => format!("{}ms", with_fraction(0, nanoseconds, 1_000_000)),
        };
    }
    let rest = with_fraction(seconds % 60, nanoseconds, 1_000_000_000);
    match (seconds / 3_600, seconds / 60 % 60) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// So many units and nanoseconds, as a decimal number without zeros at its end.
fn with_fraction(whole: u64, nanoseconds: u32, unit: u32) -> String {
    let whole = whole + u64::from(nanoseconds / unit);
    let digits = unit.ilog10() as usize;
    let fraction = format!("{:0digits$}", nanoseconds % unit);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_does() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (999_999, "999.999µs"),
            (250_000_000, "250ms"),
            (1_001_000, "1.001ms"),
            (1_536_908_032, "1.536908032s"),
            (60_000_000_000, "1m0s"),
            (120_500_000_000, "2m0.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (90_061_000_000_001, "25h1m1.000000001s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(nanoseconds)), text);
        }
    }
}
