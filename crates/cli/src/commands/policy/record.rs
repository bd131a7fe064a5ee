//! `sluice policy record`: what the policies of a mesh decide from now on, written down.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::future::pending;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bus::Bus;
use clap::Args;
use futures::StreamExt as _;
use lifecycle::signals::Signals;
use policy::record::{Entry, TOLD_FOR_MAX};
use proto::subjects::DECISIONS;
use proto::{RecordRequest, RecordedDecision};
use tokio::sync::mpsc;

use super::super::Context;
use crate::progress::Progress;
use crate::{render, session};

/// A service is asked three times before it would stop; one that starts meanwhile is asked as soon.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long the first service may take to answer: it may be starting.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long all are waited for, each time.
const ANSWERS_WAIT: Duration = Duration::from_secs(1);
/// Lines that wait to be written, of some kilobytes each; what comes beyond is lost.
const LINES_WAITING_MAX: usize = 256;
/// Services whose lost decisions are counted: more than any mesh has, restarted ones included.
const SERVICES_MAX: usize = 4096;

/// Write down what the policies of a mesh decide from now on, for `sluice policy replay`; no service is restarted for it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice --nats nats://mesh:4222 policy record --output decisions
                                                 until ctrl-C
  sluice policy record --output decisions --for 1h
                                                 for an hour, from the NATS server of the settings
  sluice policy record --count 100 | gzip > decisions.gz
  sluice policy replay decisions --plugin mine.wasm --as mine
                                                 what would the new version of `mine` have said?

All policy services on the NATS server are asked. They wait for nobody who listens: decisions
that come faster than they can be written are lost, and counted. Services that are not on NATS
write theirs down by themselves: policy.record.file.")]
pub struct RecordArgs {
    /// Add to this file, which is for its owner alone, instead of printing
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// End after this time: 10m
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// End after so many decisions
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// What was told, and what was not.
#[derive(Debug, Default)]
struct Heard {
    written: u64,
    /// Too many lines waited to be written.
    late: u64,
    services: HashMap<String, Numbers>,
}

/// Of one service's decisions. They may overtake each other.
#[derive(Debug)]
struct Numbers {
    first: u64,
    last: u64,
    heard: u64,
}

pub(super) async fn run(context: &Context, args: RecordArgs) -> anyhow::Result<ExitCode> {
    let Some(nats) = &context.settings.nats else {
        bail!(
            "decisions are told on NATS: name the server with --nats, or in the settings (nats.url). \
             Services that are not on NATS write theirs down when policy.record.file is set"
        );
    };
    let file = args.output.as_deref().map(open).transpose()?;
    let bus = session::connect(nats).await?;
    // Before any service is asked, so that nothing is told too early.
    let mut told = bus.listen_to::<RecordedDecision>(DECISIONS).await?;
    let asking = "ask the policy services on NATS, of this version or a newer one, for their decisions";
    bus.call(request(), FIRST_ANSWER_MAX).await.context(asking)?;

    let mut signals = Signals::register()?;
    let progress = context.progress();
    let mut asking = std::pin::pin!(keep_asking(&bus, &progress));
    let mut time_over = std::pin::pin!(async {
        match args.time {
            Some(time) => tokio::time::sleep(time).await,
            None => pending().await,
        }
    });
    // Beside, so that a reader that stands still keeps neither services from being asked nor signals from being heard.
    let (lines, waiting) = mpsc::channel(LINES_WAITING_MAX);
    let writing = tokio::task::spawn_blocking(move || write(waiting, file));
    let mut heard = Heard::default();
    while args.count.is_none_or(|count| heard.written < count) {
        let decision = tokio::select! {
            decision = told.next() => decision.context("the connection to NATS has ended")?,
            never = &mut asking => match never {},
            () = lines.closed() => break,
            () = &mut time_over => break,
            _ = signals.next() => break,
        };
        heard.note(&decision);
        if let Some(entry) = Entry::of(decision) {
            let taken = lines.try_send(serde_json::to_string(&entry)?).is_ok();
            *if taken { &mut heard.written } else { &mut heard.late } += 1;
        }
    }
    drop(lines);
    tokio::select! {
        done = writing => done.context("writing decisions down")??,
        signal = signals.next() => bail!("{signal}: not all decisions were written down"),
    }
    progress.note(&heard.described());
    Ok(ExitCode::SUCCESS)
}

fn request() -> RecordRequest {
    RecordRequest { for_ms: u32::try_from(TOLD_FOR_MAX.as_millis()).unwrap_or(u32::MAX) }
}

/// Has all services go on, also those that came later; says how many there are when that changes.
async fn keep_asking(bus: &Bus, progress: &Progress) -> Infallible {
    let mut before = None;
    loop {
        let services = bus.gather(request(), ANSWERS_WAIT).await.map_or(0, |replies| replies.len());
        if before.replace(services) != Some(services) {
            progress.note(&match services {
                0 => "no policy service answers: what is decided now may be missed".to_owned(),
                1 => "one policy service tells its decisions".to_owned(),
                several => format!("{several} policy services tell their decisions"),
            });
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// As `policy.record.file` is written: it may be one.
fn open(file: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(file);
    opened.with_context(|| format!("open {}", file.display()))
}

/// Each line at once: whoever follows the file sees whole ones. Blocks.
fn write(mut lines: mpsc::Receiver<String>, mut file: Option<File>) -> anyhow::Result<()> {
    while let Some(mut line) = lines.blocking_recv() {
        match &mut file {
            Some(file) => {
                line.push('\n');
                file.write_all(line.as_bytes()).context("write a decision down")?;
            }
            None => render::line(&line)?,
        }
    }
    Ok(())
}

impl Heard {
    fn note(&mut self, decision: &RecordedDecision) {
        let number = decision.number;
        if let Some(numbers) = self.services.get_mut(&decision.instance) {
            numbers.first = numbers.first.min(number);
            numbers.last = numbers.last.max(number);
            numbers.heard += 1;
        } else if self.services.len() < SERVICES_MAX {
            let numbers = Numbers { first: number, last: number, heard: 1 };
            self.services.insert(decision.instance.clone(), numbers);
        }
    }

    /// Those that did not arrive, though others did before and after, and those that were late.
    fn lost(&self) -> u64 {
        let lost = |numbers: &Numbers| (numbers.last - numbers.first).saturating_sub(numbers.heard - 1);
        self.services.values().map(lost).fold(self.late, u64::saturating_add)
    }

    fn described(&self) -> String {
        let lost = match self.lost() {
            0 => String::new(),
            lost => format!("; {lost} more came faster than they could be written, and are lost"),
        };
        format!("{} decisions were written down{lost}", self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_decisions_are_counted_of_each_service_whatever_their_order() {
        let mut heard = Heard::default();
        for (instance, number) in [("a", 7), ("b", 0), ("a", 9), ("a", 8), ("b", 3), ("a", u64::MAX)] {
            let instance = instance.to_owned();
            heard.note(&RecordedDecision { instance, number, ..RecordedDecision::default() });
        }
        assert_eq!(heard.lost(), u64::MAX - 10 + 2);
        let late = Heard { written: 6, late: 2, ..Heard::default() };
        let said = late.described();
        assert!(said.starts_with("6 decisions were written down; 2 more came "), "{said}");
        assert_eq!(Heard::default().described(), "0 decisions were written down");
    }
}
