//! How a delay line waits.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

pub(super) trait Timer: Send {
    /// Not before `moment`.
    fn until(&mut self, moment: Instant) -> impl Future<Output = io::Result<()>> + Send;
}

/// A timer of the kernel. The runtime's own are a millisecond coarse and round up: half a round trip of a millisecond would take
/// three times as long.
#[derive(Debug)]
pub(super) struct Precise(AsyncFd<OwnedFd>);

impl Precise {
    pub(super) fn new() -> io::Result<Precise> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "what it cannot know of other types is true of OwnedFd: its descriptor never changes"
        )]
        let watched = AsyncFd::new(timer)?;
        Ok(Precise(watched))
    }
}

impl Timer for Precise {
    async fn until(&mut self, moment: Instant) -> io::Result<()> {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let it_value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut rings = self.0.readable().await?;
            let read = |timer: &AsyncFd<OwnedFd>| Ok(rustix::io::read(timer, &mut [0; 8])?);
            if let Ok(rang) = rings.try_io(read) {
                return rang.map(|_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn rings_again_and_again_and_never_early() {
        let mut timer = Precise::new().unwrap();
        for micros in [0, 50, 300, 1_500] {
            let moment = Instant::now() + Duration::from_micros(micros);
            timer.until(moment).await.unwrap();
            assert!(Instant::now() >= moment, "{micros} µs");
        }
    }
}
