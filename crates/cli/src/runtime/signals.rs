//! Signals on their way to a container.
//!
//! With standard input on a terminal the runtime shares our process group, so what the keyboard raises reaches it
//! without us and only the others are passed on; otherwise it has a group of its own and gets all from us.

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// The signals that are passed on, and whether a terminal raises them.
const PASSED_ON: &[(Signal, bool)] = &[
    (Signal::INT, true),
    (Signal::QUIT, true),
    (Signal::TERM, false),
    (Signal::HUP, false),
    (Signal::USR1, false),
    (Signal::USR2, false),
];

/// Caught from here on, so that none ends this process while it has something to clean up.
#[derive(Debug)]
pub struct Caught {
    streams: Vec<(Signal, bool, Stream)>,
}

impl Caught {
    pub fn new() -> anyhow::Result<Caught> {
        let catch = |&(number, keyboard): &(Signal, bool)| {
            let stream = signal(SignalKind::from_raw(number.as_raw()))?;
            Ok((number, keyboard, stream))
        };
        Ok(Caught { streams: PASSED_ON.iter().map(catch).collect::<anyhow::Result<_>>()? })
    }

    /// The next signal, and whether it can have come from a keyboard.
    pub async fn next(&mut self) -> (Signal, bool) {
        let waiting = self.streams.iter_mut().map(|(number, keyboard, stream)| {
            Box::pin(async move {
                stream.recv().await;
                (*number, *keyboard)
            })
        });
        futures::future::select_all(waiting).await.0
    }

    /// Passes on what arrives to `process`, until dropped.
    pub async fn forward(&mut self, process: u32, shares_terminal: bool) -> std::convert::Infallible {
        let process = i32::try_from(process).ok().and_then(Pid::from_raw);
        loop {
            let (number, keyboard) = self.next().await;
            let reached_it = keyboard && shares_terminal;
            if let (Some(process), false) = (process, reached_it)
                && let Err(error) = kill_process(process, number)
            {
                tracing::debug!(error = %error, "pass a signal on");
            }
        }
    }
}
