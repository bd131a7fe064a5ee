//! What a service counts, as its admin server tells scrapers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::Context as _;

/// The sum of all series whose line begins with `name`; 0 when there is none.
pub fn sum(port: u16, name: &str) -> anyhow::Result<f64> {
    let text = ask(port, "/metrics")?;
    let values =
        text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().with_context(|| format!("{name} {value}"))).sum()
}

/// The HTTP status and the body of what is at `path`.
pub fn get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let text = ask(port, path)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head and a body")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no status: {head}"))?, body.to_owned()))
}

fn ask(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
