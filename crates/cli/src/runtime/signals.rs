//! Signals that this process gets.

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What ends a command that does not catch it.
const ENDING: &[Signal] = &[Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP, Signal::USR1, Signal::USR2];
/// What else a container's process may be told with.
const OTHERS: &[Signal] =
    &[Signal::ALARM, Signal::CONT, Signal::IO, Signal::POWER, Signal::VTALARM, Signal::WINCH];
/// Real-time signals, by which services such as systemd take orders. The C library keeps those before for itself.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Caught from here on, so that none ends this process while it has something to clean up. By number: real-time signals
/// have no names.
#[derive(Debug)]
pub struct Caught {
    streams: Vec<(i32, Stream)>,
}

impl Caught {
    /// Those that would end this process.
    pub fn new() -> anyhow::Result<Caught> {
        Caught::of(ENDING.iter().map(|signal| signal.as_raw()))
    }

    /// Those as well that mean something to a container only.
    pub fn all() -> anyhow::Result<Caught> {
        Caught::of(ENDING.iter().chain(OTHERS).map(|signal| signal.as_raw()).chain(REAL_TIME))
    }

    fn of(numbers: impl Iterator<Item = i32>) -> anyhow::Result<Caught> {
        // `nohup` has its way.
        let ignored = ignored();
        let wanted = numbers.filter(|&number| number != Signal::HUP.as_raw() || !ignores(ignored, number));
        let catch = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        Ok(Caught { streams: wanted.map(catch).collect::<anyhow::Result<_>>()? })
    }

    /// The next signal.
    pub async fn next(&mut self) -> i32 {
        let waiting = self.streams.iter_mut().map(|(number, stream)| {
            Box::pin(async move {
                stream.recv().await;
                *number
            })
        });
        futures::future::select_all(waiting).await.0
    }

    /// The next that would have ended this process.
    pub async fn ending(&mut self) -> i32 {
        loop {
            let number = self.next().await;
            if ENDING.iter().any(|signal| signal.as_raw() == number) {
                return number;
            }
        }
    }
}

/// The signals that this process was started to ignore, one bit each.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

fn ignores(mask: u64, number: i32) -> bool {
    mask >> (number - 1) & 1 == 1
}

/// A signal as images name it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub fn number_of(name: &str) -> Option<i32> {
    let upper = name.trim().to_ascii_uppercase();
    let word = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = word.parse().ok().or_else(|| real_time(word)) {
        return (1..=*REAL_TIME.end()).contains(&number).then_some(number);
    }
    let signal = match word {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "ALRM" => Signal::ALARM,
        "TERM" => Signal::TERM,
        "WINCH" => Signal::WINCH,
        "PWR" => Signal::POWER,
        _ => return None,
    };
    Some(signal.as_raw())
}

fn real_time(word: &str) -> Option<i32> {
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
    match (word.strip_prefix("RTMIN"), word.strip_prefix("RTMAX")) {
        (Some(offset_text), _) => Some(REAL_TIME.start() + offset(offset_text)?),
        (_, Some(offset_text)) => Some(REAL_TIME.end() + offset(offset_text)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_signals_however_images_name_them() {
        for (name, number) in [
            ("SIGTERM", 15),
            ("winch", 28),
            ("SIGWINCH", 28),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(number_of(name), Some(number), "{name}");
        }
        for wrong in ["", "SIG", "SIGNOTHING", "0", "65", "-1", "RTMIN+99", "RTMINx"] {
            assert_eq!(number_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bits_of_the_mask_are_signals() {
        assert!(ignores(0b1, 1) && !ignores(0b1, 2) && ignores(0b10, 2) && ignores(1 << 63, 64));
    }
}
