//! When a container counts as ready; the same two ways as in `sluice compare`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// How often a container that is not ready yet is asked again.
const POLL: Duration = Duration::from_millis(5);
/// How long a container may take; a normal pull is over by then.
const READY_MAX: Duration = Duration::from_secs(300);
/// How long one answer may take; the service may be reading its own files for it.
const ANSWER_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It printed a line with these words.
    Line(String),
    /// It answers a request for the path.
    Http { port: u16, path: String },
}

impl Ready {
    /// `PORT[/PATH]`
    pub fn http(probe: &str) -> anyhow::Result<Ready> {
        let (port, path) = probe.split_once('/').unwrap_or((probe, ""));
        let port = port.parse().with_context(|| format!("{probe} is not PORT[/PATH]"))?;
        Ok(Ready::Http { port, path: format!("/{path}") })
    }

    /// A service that already answers would be measured in the container's place.
    pub fn check_free(&self) -> anyhow::Result<()> {
        let Ready::Http { port, .. } = self else { return Ok(()) };
        let listens = TcpStream::connect(("127.0.0.1", *port)).is_ok();
        ensure!(!listens, "something on this machine already listens on port {port}");
        Ok(())
    }

    /// Waits, bounded, until the container that logs there is ready.
    pub fn wait(&self, log: &Path) -> anyhow::Result<()> {
        let asked = Instant::now();
        while !self.is_ready(log) {
            let said = || std::fs::read_to_string(log).unwrap_or_default();
            ensure!(asked.elapsed() < READY_MAX, "not ready after {READY_MAX:?}; it printed: {}", said());
            sleep(POLL);
        }
        Ok(())
    }

    fn is_ready(&self, log: &Path) -> bool {
        match self {
            Ready::Line(words) => {
                std::fs::read_to_string(log).is_ok_and(|text| text.lines().any(|line| line.contains(words)))
            }
            Ready::Http { port, path } => answers(*port, path).unwrap_or(false),
        }
    }
}

/// Whether the status is a success or a redirect.
fn answers(port: u16, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line)?;
    Ok(status_line.starts_with(b"HTTP/1.") && matches!(status_line[9], b'2' | b'3'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_probes() {
        let with = |path: &str| Ready::Http { port: 8080, path: path.to_owned() };
        assert_eq!(Ready::http("8080/index.php").unwrap(), with("/index.php"));
        assert_eq!(Ready::http("8080").unwrap(), with("/"));
        assert!(Ready::http("php").is_err());
    }

    #[test]
    fn a_line_of_the_log_makes_ready() {
        let folder = tempfile::tempdir().unwrap();
        let (log, ready) = (folder.path().join("log"), Ready::Line("ready".to_owned()));
        assert!(!ready.is_ready(&log));
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F starting\n").unwrap();
        assert!(!ready.is_ready(&log));
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F ready 3.5\n").unwrap();
        assert!(ready.is_ready(&log));
    }
}
