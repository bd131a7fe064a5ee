//! The numbers of a comparison, as `--json` prints them. Times are in seconds, sizes in bytes.

use image::ImageRecord;
use serde::Serialize;
use tokio::time::Instant;

use super::Plan;
use super::ready::Ready;
use super::start::Started;
use crate::commands::import;
use crate::link::{self, Counters, Shape};
use crate::processor;

#[derive(Debug, Serialize)]
pub struct Report {
    pub image: ImageFacts,
    pub link: LinkFacts,
    /// What counted as ready.
    pub ready_when: String,
    /// Medians of the rounds.
    pub normal: Start,
    /// Imported before, no earlier start known.
    pub streamed: Start,
    /// Imported before, with the profile of an earlier start.
    pub learned: Start,
    /// Nobody had seen the image: import, mount and start. Absent without `--first`.
    pub first: Option<Start>,
    pub ratios: Ratios,
    pub limit: Limit,
    /// The import that filled the store, without a link unless it was part of `first`.
    pub import: Option<import::Summary>,
    pub rounds: Vec<Round>,
}

#[derive(Debug, Serialize)]
pub struct ImageFacts {
    pub reference: String,
    pub manifest_digest: String,
    pub layers: usize,
    pub files: u64,
    /// Of all layers' blobs: what a normal pull moves.
    pub compressed_bytes: u64,
    /// Of all distinct files.
    pub plain_bytes: u64,
    /// Of all distinct chunks, compressed: what streaming moves to have everything.
    pub stored_bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct LinkFacts {
    pub rtt: f64,
    /// Bits per second; absent: unlimited.
    pub bandwidth: Option<u64>,
}

/// One measured start.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Start {
    /// Until the image can be used: pulled and unpacked, or mounted.
    pub pull: f64,
    /// From then until the runtime was asked to start the container.
    pub create: f64,
    /// From then until it was ready.
    pub start: f64,
    /// All of it.
    pub ready: f64,
    /// Moved over the link until ready, to the node and from it.
    pub bytes_down: u64,
    pub bytes_up: u64,
    #[serde(flatten)]
    pub processor: Processor,
    /// Questions to the cache that a read waited for, until ready.
    pub round_trips: u64,
}

/// Processor time until ready.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Processor {
    /// Of everything that took part, on either end of the link, and the container itself.
    pub cpu: f64,
    /// Of the simulated link, which is none of it.
    pub link_cpu: f64,
}

/// Ready times, streaming divided by normal.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ratios {
    pub streamed: f64,
    pub learned: f64,
    pub first: Option<f64>,
}

/// What no streaming could beat: the bytes that the start read, at the link's bandwidth, and three round trips.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limit {
    pub bytes: u64,
    pub seconds: f64,
    /// Ready times, divided by the limit. Absent without a link, where the limit is 0.
    pub streamed: Option<f64>,
    pub learned: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub normal: Start,
    pub streamed: Start,
    pub learned: Start,
    pub first: Option<Start>,
    pub import: Option<import::Summary>,
    /// Stored bytes that the start could not do without.
    pub needed_bytes: u64,
}

impl Start {
    pub(super) fn new(
        asked: Instant,
        pulled: Instant,
        started: &Started,
        moved: Counters,
        processor: Processor,
    ) -> Start {
        Start {
            pull: (pulled - asked).as_secs_f64(),
            create: (started.created - pulled).as_secs_f64(),
            start: (started.ready - started.created).as_secs_f64(),
            ready: (started.ready - asked).as_secs_f64(),
            bytes_down: moved.down,
            bytes_up: moved.up,
            processor,
            round_trips: 0,
        }
    }

    /// The median of each number by itself.
    fn median(starts: &[Start]) -> Start {
        let seconds = |field: fn(&Start) -> f64| median(starts.iter().map(field).collect());
        let bytes = |field: fn(&Start) -> u64| {
            median(starts.iter().map(|start| field(start) as f64).collect()) as u64
        };
        Start {
            pull: seconds(|start| start.pull),
            create: seconds(|start| start.create),
            start: seconds(|start| start.start),
            ready: seconds(|start| start.ready),
            bytes_down: bytes(|start| start.bytes_down),
            bytes_up: bytes(|start| start.bytes_up),
            processor: Processor {
                cpu: seconds(|start| start.processor.cpu),
                link_cpu: seconds(|start| start.processor.link_cpu),
            },
            round_trips: bytes(|start| start.round_trips),
        }
    }
}

impl Processor {
    /// What was taken so far, by anybody.
    pub(super) fn now() -> Processor {
        let link = link::processor_time();
        let all = processor::of_tree();
        Processor { cpu: all.saturating_sub(link).as_secs_f64(), link_cpu: link.as_secs_f64() }
    }

    /// Since this was `now`.
    pub(super) fn spent(self) -> Processor {
        let now = Processor::now();
        Processor { cpu: (now.cpu - self.cpu).max(0.0), link_cpu: (now.link_cpu - self.link_cpu).max(0.0) }
    }
}

impl ImageFacts {
    pub fn new(reference: &str, record: &ImageRecord) -> ImageFacts {
        ImageFacts {
            reference: reference.to_owned(),
            manifest_digest: record.manifest_digest.clone(),
            layers: record.layers.len(),
            files: record.files,
            compressed_bytes: record.layers.iter().map(|layer| layer.size).sum(),
            plain_bytes: record.plain_bytes,
            stored_bytes: record.stored_bytes,
        }
    }
}

impl Report {
    pub fn new(image: ImageFacts, plan: &Plan, ready: &Ready, rounds: Vec<Round>) -> Report {
        let all = |field: fn(&Round) -> Start| Start::median(&rounds.iter().map(field).collect::<Vec<_>>());
        let (normal, streamed, learned) = (all(|r| r.normal), all(|r| r.streamed), all(|r| r.learned));
        let firsts: Vec<Start> = rounds.iter().filter_map(|round| round.first).collect();
        let first = (!firsts.is_empty()).then(|| Start::median(&firsts));
        let ratios = Ratios {
            streamed: streamed.ready / normal.ready,
            learned: learned.ready / normal.ready,
            first: first.map(|first| first.ready / normal.ready),
        };
        let needed = median(rounds.iter().map(|round| round.needed_bytes as f64).collect()) as u64;
        Report {
            image,
            link: LinkFacts {
                rtt: plan.shape.rtt.as_secs_f64(),
                bandwidth: plan.shape.bandwidth.map(|bandwidth| bandwidth.0),
            },
            ready_when: ready.to_string(),
            limit: Limit::new(&plan.shape, needed, &streamed, &learned),
            import: rounds.iter().find_map(|round| round.import),
            normal,
            streamed,
            learned,
            first,
            ratios,
            rounds,
        }
    }
}

impl Limit {
    fn new(shape: &Shape, bytes: u64, streamed: &Start, learned: &Start) -> Limit {
        let moving = shape.bandwidth.map_or(0.0, |bandwidth| bandwidth.time_for(bytes).as_secs_f64());
        let seconds = moving + 3.0 * shape.rtt.as_secs_f64();
        let ratio = |start: &Start| (seconds > 0.0).then(|| start.ready / seconds);
        Limit { bytes, seconds, streamed: ratio(streamed), learned: ratio(learned) }
    }
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(&value), 1) => value,
        (Some(&value), _) => (values[middle - 1] + value) / 2.0,
        (None, _) => 0.0,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::RunOptions;

    /// Two rounds over 20 ms and 200 Mbit/s.
    pub(in crate::compare) fn example() -> Report {
        let start = |ready| Start {
            pull: ready / 2.0,
            start: ready / 2.0,
            ready,
            bytes_down: 1_000,
            processor: Processor { cpu: ready / 10.0, link_cpu: 0.25 },
            ..Start::default()
        };
        let round = |factor: f64| Round {
            normal: start(20.0 * factor),
            streamed: start(2.0 * factor),
            learned: start(1.0 * factor),
            first: None,
            import: None,
            needed_bytes: 2_500_000,
        };
        let plan = Plan {
            request: proto::ResolveRequest::default(),
            shape: Shape { rtt: Duration::from_millis(20), bandwidth: Some("200Mbit".parse().unwrap()) },
            ready: None,
            timeout: Duration::from_secs(1),
            rounds: 2,
            first: false,
            runtime: None,
            options: RunOptions::default(),
        };
        let image = ImageFacts {
            reference: "app:1".to_owned(),
            manifest_digest: "sha256:0123456789abcdef".to_owned(),
            layers: 3,
            files: 1_234,
            compressed_bytes: 150_000_000,
            plain_bytes: 400_000_000,
            stored_bytes: 140_000_000,
        };
        Report::new(image, &plan, &Ready::Exit, vec![round(1.0), round(2.0)])
    }

    #[test]
    fn medians_ratios_and_the_physical_limit() {
        let report = example();
        assert_eq!((report.normal.ready, report.streamed.ready, report.learned.ready), (30.0, 3.0, 1.5));
        assert_eq!((report.ratios.streamed, report.ratios.learned), (0.1, 0.05));
        assert!((report.limit.seconds - 0.16).abs() < 1e-9);
        assert!((report.limit.streamed.unwrap() - 18.75).abs() < 1e-6);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
