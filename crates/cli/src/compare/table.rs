//! A comparison for people.

use super::report::{Report, Start};
use crate::link::Bandwidth;
use crate::render;

pub fn describe(report: &Report) -> String {
    let header = ["", "pull", "create", "start", "ready", "moved", "cpu", "link cpu", "of normal"];
    let mut rows = vec![row("normal pull", &report.normal, Some(1.0))];
    rows.push(row("streaming", &report.streamed, Some(report.ratios.streamed)));
    rows.push(row("streaming, learned", &report.learned, Some(report.ratios.learned)));
    if let Some(first) = &report.first {
        rows.push(row("streaming, first pull", first, report.ratios.first));
    }
    let table = render::table(&header, &[1, 2, 3, 4, 5, 6, 7, 8], rows);
    format!("{}\n\n{table}\n{}", heading(report), footnotes(report))
}

fn heading(report: &Report) -> String {
    let image = &report.image;
    let bandwidth = report.link.bandwidth.map_or("unlimited".to_owned(), |bits| Bandwidth(bits).to_string());
    format!(
        "{}: {} layers, {} files, {} compressed, {} plain\nlink: {:.0} ms round trip, {bandwidth}; ready when {}; {}",
        image.reference,
        image.layers,
        image.files,
        render::bytes(image.compressed_bytes),
        render::bytes(image.plain_bytes),
        report.link.rtt * 1e3,
        report.ready_when,
        match report.rounds.len() {
            1 => "one round".to_owned(),
            rounds => format!("medians of {rounds} rounds"),
        }
    )
}

fn footnotes(report: &Report) -> String {
    let mut text =
        "cpu: processor time until ready of everything but the simulated link, on both ends of it\n"
            .to_owned();
    let limit = &report.limit;
    if let (Some(streamed), Some(learned)) = (limit.streamed, limit.learned) {
        text += &format!(
            "physical limit: {} that the start reads and 3 round trips: {:.2} s; streaming {streamed:.1} times that, learned {learned:.1}\n",
            render::bytes(limit.bytes),
            limit.seconds
        );
    }
    if let Some(import) = &report.import {
        text += &format!("import before: {:.1} s, once for all nodes\n", import.seconds);
    }
    text
}

fn row(name: &str, start: &Start, ratio: Option<f64>) -> Vec<String> {
    let seconds = |value: f64| format!("{value:.2} s");
    vec![
        name.to_owned(),
        seconds(start.pull),
        seconds(start.create),
        seconds(start.start),
        seconds(start.ready),
        render::bytes(start.bytes_down),
        seconds(start.processor.cpu),
        seconds(start.processor.link_cpu),
        ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}")),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn shows_every_side_and_the_limit() {
        let text = describe(&example());
        for expected in [
            "normal pull",
            "streaming, learned",
            "1.50 s",
            "0.050",
            "200Mbit/s",
            "0.16 s",
            "medians of 2",
            "3.00 s",
            "0.25 s",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert!(!text.contains("first pull"));
    }
}
