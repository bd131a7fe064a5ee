//! Which minute or day of UTC it is, and how long it lasts.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::QuotaWindow;

/// A window of time: the how manieth since 1970, and how much of it is left, at least 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub number: u64,
    pub ends_in_ms: u64,
}

/// The window of this kind that it is `unix_ms` in.
pub fn window(window: QuotaWindow, unix_ms: u64) -> Now {
    let length = length_ms(window);
    Now { number: unix_ms / length, ends_in_ms: length - unix_ms % length }
}

/// In milliseconds.
pub fn length_ms(window: QuotaWindow) -> u64 {
    u64::try_from(window.length().as_millis()).unwrap_or(u64::MAX)
}

/// This machine's clock, in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_those_of_the_calendar() {
        // 2026-11-30 18:59:59.999 UTC.
        let late = 1_796_065_199_999;
        assert_eq!(window(QuotaWindow::Minute, late), Now { number: 29_934_419, ends_in_ms: 1 });
        assert_eq!(window(QuotaWindow::Minute, late + 1), Now { number: 29_934_420, ends_in_ms: 60_000 });
        let day = window(QuotaWindow::Day, late);
        assert_eq!((day.number, day.ends_in_ms), (20_787, 5 * 3_600_000 + 1));
    }
}
