//! Whether this machine has the mesh's time: grants, tokens and certificates end by clocks.

use std::time::Duration;

use bus::{Bus, unix_ms};
use lifecycle::Probe;
use proto::{ClockReply, ClockRequest};

/// Clocks may differ so much: grants live for hours, certificates count from ten minutes before they were made.
pub const SKEW_MAX: Duration = Duration::from_secs(60);
/// How long a fetcher may take to say what time it has.
const WITHIN: Duration = Duration::from_secs(5);

/// Of a node.
pub const CLOCK: Probe = Probe {
    what: "clock",
    gauge: "sluice_clock_right",
    every: Duration::from_secs(10 * 60),
    within: Duration::from_secs(10),
};

/// What a fetcher's clock says of this machine's. An error: nobody says what time it is.
pub async fn clock(bus: &Bus) -> Result<Option<Duration>, String> {
    let asked = unix_ms();
    let reply = bus.call_once(ClockRequest {}, WITHIN).await;
    let ClockReply { now_ms } = reply.map_err(|status| status.message().to_owned())?;
    Ok(skew(now_ms, asked, unix_ms()))
}

/// Whether the clock is right, as far as anybody can say: while every fetcher is away it is not known to be wrong.
pub fn clock_probe(bus: Bus) -> impl Fn() -> crate::Looking + Send + Sync + 'static {
    move || {
        let bus = bus.clone();
        Box::pin(async move {
            match clock(&bus).await {
                Ok(Some(off)) => Err(differs(off)),
                Ok(None) | Err(_) => Ok(()),
            }
        })
    }
}

pub fn differs(off: Duration) -> String {
    format!("it differs from the mesh's by {} s: keep it by NTP", off.as_secs())
}

/// How far a clock is off for sure; it was read between two moments of ours.
pub fn skew(theirs: u64, asked: u64, answered: u64) -> Option<Duration> {
    let off = Duration::from_millis(asked.saturating_sub(theirs).max(theirs.saturating_sub(answered)));
    (off > SKEW_MAX).then_some(off)
}

#[cfg(test)]
mod tests {
    use bus::Answer;

    use super::*;

    #[test]
    fn a_clock_is_off_only_beyond_what_the_question_took() {
        assert_eq!(skew(5_000, 1_000, 9_000), None);
        assert_eq!(skew(100_000, 1_000, 60_000), None, "within the bound");
        assert_eq!(skew(700_000, 1_000, 60_000), Some(Duration::from_secs(640)));
        assert_eq!(skew(1_000, 601_000, 603_000), Some(Duration::from_secs(600)));
    }

    #[tokio::test]
    async fn ten_minutes_are_too_much_and_nobody_to_ask_is_no_fault() {
        let bus = Bus::in_process();
        let look = clock_probe(bus.clone());
        assert!(clock(&bus).await.is_err());
        look().await.unwrap();
        let ahead =
            |_: ClockRequest| std::future::ready(Ok(ClockReply { now_ms: unix_ms() + 10 * 60 * 1_000 }));
        let _answering = bus.answer(Answer { in_flight: 1, instance: None }, ahead).await.unwrap();
        let reason = look().await.unwrap_err();
        assert!(reason.contains("differs from the mesh's by") && reason.contains("NTP"), "{reason}");
    }
}
