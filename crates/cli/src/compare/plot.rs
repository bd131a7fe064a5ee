//! A picture of a streamed start: what was asked for when, how long it took, and what waited for it.
//!
//! Time goes to the right. Each chunk is a bar from when it was asked for to when it was here, as high as it is large, on
//! top of those that arrived before: the upper edge is the amount received. Full colour: a read waited for it.

use std::fmt::Write as _;
use std::time::Duration;

use proto::ReadTrace;
use proto::read_trace::ChunkClass;

use super::report::Report;
use super::streaming::StartUp;
use crate::render;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 46.0;
/// Shown after the start was ready, as a share of it: what the background does next.
const AFTERWARDS: f64 = 0.15;
/// Bars thinner than this would not be seen, in pixels.
const THINNEST: f64 = 0.6;

/// Where times and amounts are on the page.
struct Axes {
    seconds: f64,
    bytes: f64,
}

/// A chunk on its way.
struct Bar {
    asked: f64,
    arrived: f64,
    below: f64,
    bytes: f64,
    class: ChunkClass,
    waited: bool,
}

pub fn svg(report: &Report, start_up: &StartUp) -> String {
    let shown = start_up.ready.as_secs_f64() * (1.0 + AFTERWARDS);
    let bars = bars(&start_up.trace, shown);
    let received = bars.last().map_or(1.0, |bar| bar.below + bar.bytes);
    let axes = Axes { seconds: shown.max(1e-3), bytes: received.max(1.0) };
    let mut page = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    title(&mut page, report);
    axes.grid(&mut page);
    for bar in &bars {
        axes.bar(&mut page, bar);
    }
    axes.moment(&mut page, "mounted", start_up.pulled);
    axes.moment(&mut page, "ready", start_up.ready);
    page + "</svg>\n"
}

/// The arrivals up to `shown` seconds, in their order.
fn bars(trace: &[ReadTrace], shown: f64) -> Vec<Bar> {
    let mut arrivals: Vec<&ReadTrace> =
        trace.iter().filter(|arrival| seconds(arrival.at_us) <= shown).collect();
    arrivals.sort_by_key(|arrival| arrival.at_us);
    let mut below = 0.0;
    let mut bars = Vec::with_capacity(arrivals.len());
    for arrival in arrivals {
        let bytes = f64::from(arrival.stored_bytes);
        bars.push(Bar {
            asked: seconds(arrival.at_us.saturating_sub(arrival.took_us)),
            arrived: seconds(arrival.at_us),
            below,
            bytes,
            class: arrival.class(),
            waited: arrival.waiters > 0,
        });
        below += bytes;
    }
    bars
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

fn colour(class: ChunkClass) -> &'static str {
    match class {
        ChunkClass::Demand => "#c0392b",
        ChunkClass::Prefetch => "#2471a3",
        ChunkClass::Background => "#7f8c8d",
    }
}

fn title(page: &mut String, report: &Report) {
    let name = escape(&report.image.reference);
    text(
        page,
        LEFT,
        20.0,
        "start",
        &format!("{name}: start-up while streaming, ready after {:.2} s", report.streamed.ready),
    );
    let legend = [
        (ChunkClass::Demand, "asked for by a read"),
        (ChunkClass::Prefetch, "prefetched"),
        (ChunkClass::Background, "background"),
    ];
    for (place, (class, label)) in legend.into_iter().enumerate() {
        let x = LEFT + place as f64 * 170.0;
        let fill = colour(class);
        let _infallible =
            writeln!(page, "<rect x=\"{x}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{fill}\"/>");
        text(page, x + 18.0, 42.0, "start", label);
    }
    text(page, LEFT + 510.0, 42.0, "start", "pale: nothing waited for it");
}

impl Axes {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds
    }

    fn y(&self, bytes: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * bytes / self.bytes
    }

    fn grid(&self, page: &mut String) {
        let step = round_step(self.seconds / 8.0);
        let mut at = 0.0;
        while at <= self.seconds {
            line(page, self.x(at), TOP, self.x(at), HEIGHT - BOTTOM, "#e5e5e5");
            text(page, self.x(at), HEIGHT - BOTTOM + 16.0, "middle", &format!("{} s", trimmed(at)));
            at += step;
        }
        for quarter in 0..=4 {
            let bytes = self.bytes * f64::from(quarter) / 4.0;
            line(page, LEFT, self.y(bytes), WIDTH - RIGHT, self.y(bytes), "#e5e5e5");
            text(page, LEFT - 6.0, self.y(bytes) + 4.0, "end", &render::bytes(bytes as u64));
        }
        text(page, (LEFT + WIDTH) / 2.0, HEIGHT - 8.0, "middle", "since the mount was asked for");
    }

    fn bar(&self, page: &mut String, bar: &Bar) {
        let (x, width) = (self.x(bar.asked), (self.x(bar.arrived) - self.x(bar.asked)).max(THINNEST));
        let (top, bottom) = (self.y(bar.below + bar.bytes), self.y(bar.below));
        let height = (bottom - top).max(THINNEST);
        let opacity = if bar.waited { "1" } else { "0.35" };
        let _infallible = writeln!(
            page,
            "<rect x=\"{x:.2}\" y=\"{top:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"{}\" fill-opacity=\"{opacity}\"/>",
            colour(bar.class)
        );
    }

    fn moment(&self, page: &mut String, name: &str, at: Duration) {
        let x = self.x(at.as_secs_f64());
        line(page, x, TOP - 6.0, x, HEIGHT - BOTTOM, "#1e8449");
        text(page, x - 3.0, TOP - 2.0, "end", name);
    }
}

fn line(page: &mut String, x1: f64, y1: f64, x2: f64, y2: f64, stroke: &str) {
    let _infallible = writeln!(
        page,
        "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" stroke=\"{stroke}\"/>"
    );
}

/// `content` must be escaped already.
fn text(page: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let _infallible =
        writeln!(page, "<text x=\"{x:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\">{content}</text>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// 1, 2 or 5 times a power of ten, at least `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.max(1e-6).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough)
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    fn arrival(at_us: u64, class: ChunkClass, waiters: u32) -> ReadTrace {
        ReadTrace {
            at_us,
            took_us: 20_000,
            stored_bytes: 250_000,
            class: class.into(),
            waiters,
            ..ReadTrace::default()
        }
    }

    #[test]
    fn draws_what_arrived_in_time_and_nothing_after() {
        let start_up = StartUp {
            pulled: Duration::from_millis(100),
            ready: Duration::from_secs(1),
            trace: vec![
                arrival(500_000, ChunkClass::Background, 0),
                arrival(200_000, ChunkClass::Demand, 1),
                arrival(9_000_000, ChunkClass::Background, 0),
            ],
            ..StartUp::default()
        };
        let mut report = example();
        report.image.reference = "a<b".to_owned();
        let page = svg(&report, &start_up);
        assert_eq!(page.matches("fill-opacity").count(), 2);
        assert_eq!(page.matches("fill-opacity=\"1\"").count(), 1);
        assert!(page.contains("a&lt;b") && page.contains(">ready<"));
        // In order of arrival: the demanded chunk is the lower one.
        assert!(page.find("fill=\"#c0392b\" fill-opacity") < page.find("fill=\"#7f8c8d\" fill-opacity"));
    }

    #[test]
    fn an_empty_trace_is_an_empty_picture() {
        let page = svg(&example(), &StartUp::default());
        assert!(page.starts_with("<svg") && page.ends_with("</svg>\n"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn steps_are_round() {
        for (rough, step) in [(0.13, 0.2), (0.2, 0.2), (3.0, 5.0), (0.0009, 0.001)] {
            assert!((round_step(rough) - step).abs() < 1e-9, "{rough}");
        }
    }
}
