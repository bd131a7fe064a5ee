//! How far long work is: bars on a terminal, a line now and then elsewhere, nothing when quiet.
//!
//! Everything goes to stderr: stdout is for data.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use proto::layer_progress::State;
use proto::{DownloadProgress, ImportProgress};

use crate::render;

/// Without a terminal, a line is printed each time another share of the work is done, in percent.
const LINE_EVERY: u64 = 25;

const BYTES: &str = "{prefix:>11} {wide_bar} {bytes:>10} / {total_bytes:<10} {bytes_per_sec:>12}  {msg}";

#[derive(Debug)]
pub struct Progress {
    output: Output,
}

#[derive(Debug)]
enum Output {
    Quiet,
    Bar(ProgressBar),
    Lines { said: Option<(&'static str, u64)> },
}

impl Progress {
    pub fn new(quiet: bool) -> Progress {
        let output = if quiet {
            Output::Quiet
        } else if std::io::stderr().is_terminal() {
            Output::Bar(ProgressBar::hidden())
        } else {
            Output::Lines { said: None }
        };
        Progress { output }
    }

    /// One line about something that happened.
    pub fn note(&self, text: &str) {
        match &self.output {
            Output::Quiet => {}
            Output::Bar(bar) => bar.suspend(|| say(text)),
            Output::Lines { .. } => say(text),
        }
    }

    pub fn importing(&mut self, progress: Option<&ImportProgress>) {
        let Some(progress) = progress else { return };
        let finished = |layer: &&proto::LayerProgress| matches!(layer.state(), State::Done | State::Known);
        let done = progress.layers.iter().filter(finished).count();
        let message = format!("{done}/{} layers", progress.layers.len());
        self.show("importing", progress.compressed_done, progress.compressed_total, message);
    }

    pub fn downloading(&mut self, progress: &DownloadProgress) {
        let message = format!("{}/{} files", progress.objects_local, progress.objects_total);
        self.show("downloading", progress.bytes_local, progress.bytes_total, message);
    }

    fn show(&mut self, what: &'static str, done: u64, total: u64, message: String) {
        if total == 0 {
            return; // How much there is to do is not known yet.
        }
        match &mut self.output {
            Output::Quiet => {}
            Output::Bar(bar) => {
                if bar.is_hidden() || bar.prefix() != what {
                    *bar = new_bar(what);
                }
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(message);
            }
            Output::Lines { said } => {
                let step = percent(done, total) / LINE_EVERY;
                if *said != Some((what, step)) {
                    *said = Some((what, step));
                    let (done, total) = (render::bytes(done), render::bytes(total));
                    eprintln!("{what}: {done} of {total}, {message}");
                }
            }
        }
    }

    /// Takes the bar away; what follows is the result.
    pub fn finish(&mut self) {
        if let Output::Bar(bar) = &self.output {
            bar.finish_and_clear();
            self.output = Output::Bar(ProgressBar::hidden());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn new_bar(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(BYTES).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_prefix(what)
}

fn percent(done: u64, total: u64) -> u64 {
    done.saturating_mul(100).checked_div(total).unwrap_or(100).min(100)
}

/// A terminal that is gone is nobody's failure: there may be a container to end yet.
fn say(text: &str) {
    let _nobody_reads = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_survive_any_numbers() {
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(1, 4), 25);
        assert_eq!(percent(9, 4), 100);
        assert!(percent(u64::MAX, u64::MAX) <= 100);
    }
}
