//! How a container is brought to its end when its first process does not care.
//!
//! The kernel drops signals to the first process of a container that it has no handler for: a program that was not written to be
//! one, such as `sleep`, ends by none but SIGKILL.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};

/// So many from the keyboard kill.
const INTERRUPTS: u32 = 3;
/// Further apart they belong to different wishes.
const INTERRUPTS_WITHIN: Duration = Duration::from_secs(10);

/// What to do with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    PassOn,
    /// The same, and say that one more kills.
    PassOnAndWarn,
    Kill,
}

#[derive(Debug)]
pub struct Stopping {
    grace: Duration,
    interrupts: u32,
    last: Option<Instant>,
    deadline: Option<Instant>,
}

impl Stopping {
    /// `grace`: how long a container may take to end after SIGTERM.
    pub fn new(grace: Duration) -> Stopping {
        Stopping { grace, interrupts: 0, last: None, deadline: None }
    }

    pub fn on(&mut self, signal: i32) -> Step {
        let now = Instant::now();
        if signal == Signal::TERM.as_raw() {
            self.end();
        }
        if signal != Signal::INT.as_raw() && signal != Signal::QUIT.as_raw() {
            return Step::PassOn;
        }
        if self.last.is_some_and(|last| now - last > INTERRUPTS_WITHIN) {
            self.interrupts = 0;
        }
        self.last = Some(now);
        self.interrupts += 1;
        match self.interrupts {
            INTERRUPTS.. => Step::Kill,
            count if count + 1 == INTERRUPTS => Step::PassOnAndWarn,
            _ => Step::PassOn,
        }
    }

    /// The container was asked to end, in whatever way.
    pub fn end(&mut self) {
        // Asking again gives no more time.
        self.deadline.get_or_insert(Instant::now() + self.grace);
    }

    /// Until a container that was asked to end has had its time; for ever if none was.
    pub async fn overdue(&self) {
        match self.deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: i32 = Signal::INT.as_raw();
    const QUIT: i32 = Signal::QUIT.as_raw();
    const TERM: i32 = Signal::TERM.as_raw();

    #[tokio::test(start_paused = true)]
    async fn the_third_from_the_keyboard_kills() {
        let mut stopping = Stopping::new(Duration::from_secs(10));
        assert_eq!(
            [INT, QUIT, INT].map(|signal| stopping.on(signal)),
            [Step::PassOn, Step::PassOnAndWarn, Step::Kill]
        );
        // Somebody who interrupts what the container does now and then means no end.
        let mut stopping = Stopping::new(Duration::from_secs(10));
        for _ in 0..5 {
            assert_eq!(stopping.on(INT), Step::PassOn);
            tokio::time::sleep(INTERRUPTS_WITHIN + Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_begins_with_the_first_request() {
        let grace = Duration::from_secs(10);
        let mut stopping = Stopping::new(grace);
        assert!(tokio::time::timeout(grace * 100, stopping.overdue()).await.is_err());
        let asked = Instant::now();
        for _ in 0..3 {
            assert_eq!(stopping.on(TERM), Step::PassOn);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        stopping.overdue().await;
        assert_eq!(asked.elapsed(), grace);
    }
}
