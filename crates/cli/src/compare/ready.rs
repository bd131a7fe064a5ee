//! When a container counts as ready: it exits with 0, prints a line, listens, or answers HTTP.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::runtime::{ImageConfig, Ports};

/// How often a service that does not answer yet is asked again.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// How long one answer may take; the service may be reading its own files for it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// What is kept of the output, for an error message; and a longer line is matched in pieces. In bytes.
const TAIL_MAX: usize = 4 * 1024;
const LINE_MAX: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub enum Ready {
    Exit,
    Line(LinePattern),
    Port(u16),
    Http(HttpProbe),
}

#[derive(Clone, Debug)]
pub struct LinePattern(Regex);

/// `PORT[/PATH]` of the container, on its own loopback.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpProbe {
    port: u16,
    path: String,
}

impl Ready {
    /// What `config` lets one expect of its own command: a service listens, everything else ends.
    pub fn expected(config: &ImageConfig) -> Ready {
        config.exposed_ports.first().map_or(Ready::Exit, |&port| Ready::Port(port))
    }

    /// With the machine's network a service that already answers would be measured in the container's place.
    pub async fn check_free(&self) -> anyhow::Result<()> {
        let port = match self {
            Ready::Http(HttpProbe { port, .. }) | Ready::Port(port) => *port,
            Ready::Exit | Ready::Line(_) => return Ok(()),
        };
        if Ports::Machine.connect(port).await.is_ok() {
            bail!(
                "something on this machine already listens on port {port}: \
                 leave out --net host to give the container a network of its own"
            );
        }
        Ok(())
    }

    pub async fn wait(&self, process: &mut Child, output: &Output, ports: &Ports) -> anyhow::Result<()> {
        let early = |status: std::process::ExitStatus| {
            anyhow::anyhow!("the container ended before it was ready: {status}")
        };
        match self {
            Ready::Exit => match process.wait().await? {
                status if status.success() => Ok(()),
                status => bail!("the container's command failed: {status}"),
            },
            Ready::Line(_) => tokio::select! {
                biased;
                () = output.matched() => Ok(()),
                status = process.wait() => Err(early(status?)),
            },
            Ready::Port(port) => tokio::select! {
                () = until_listening(*port, ports) => Ok(()),
                status = process.wait() => Err(early(status?)),
            },
            Ready::Http(probe) => tokio::select! {
                () = probe.answers(ports) => Ok(()),
                status = process.wait() => Err(early(status?)),
            },
        }
    }
}

impl std::fmt::Display for Ready {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ready::Exit => write!(formatter, "the command exits with 0"),
            Ready::Line(pattern) => write!(formatter, "a line matches {}", pattern.0),
            Ready::Port(port) => write!(formatter, "port {port} takes connections"),
            Ready::Http(probe) => write!(formatter, "port {}{} answers", probe.port, probe.path),
        }
    }
}

async fn until_listening(port: u16, ports: &Ports) {
    while ports.connect(port).await.is_err() {
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

impl HttpProbe {
    async fn answers(&self, ports: &Ports) {
        loop {
            if let Ok(Ok(true)) = tokio::time::timeout(PROBE_TIMEOUT, self.ask(ports)).await {
                return;
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Whether the status is a success or a redirect.
    async fn ask(&self, ports: &Ports) -> std::io::Result<bool> {
        let mut stream = ports.connect(self.port).await?;
        let request = format!("GET {} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n", self.path);
        stream.write_all(request.as_bytes()).await?;
        let mut status_line = [0; 12];
        stream.read_exact(&mut status_line).await?;
        Ok(status_line.starts_with(b"HTTP/1.") && matches!(status_line[9], b'2' | b'3'))
    }
}

impl FromStr for HttpProbe {
    type Err = String;

    fn from_str(text: &str) -> Result<HttpProbe, String> {
        let (port, path) = match text.split_once('/') {
            Some((port, path)) => (port, format!("/{path}")),
            None => (text, "/".to_owned()),
        };
        let good_path = path.bytes().all(|byte| byte.is_ascii_graphic());
        match port.parse() {
            Ok(port @ 1..) if good_path => Ok(HttpProbe { port, path }),
            _ => Err("PORT[/PATH] expected, as in 8080/health".to_owned()),
        }
    }
}

impl FromStr for LinePattern {
    type Err = regex::Error;

    fn from_str(text: &str) -> Result<LinePattern, regex::Error> {
        Regex::new(text).map(LinePattern)
    }
}

/// What a container prints: watched for a line, the last of it kept.
#[derive(Debug)]
pub struct Output {
    tail: Arc<Mutex<Vec<u8>>>,
    matched: watch::Receiver<bool>,
    _readers: Vec<AbortOnDropHandle<()>>,
}

impl Output {
    pub fn of(process: &mut Child, ready: &Ready) -> Output {
        let pattern = match ready {
            Ready::Line(pattern) => Some(pattern.clone()),
            Ready::Exit | Ready::Port(_) | Ready::Http(_) => None,
        };
        let (sender, matched) = watch::channel(false);
        let tail = Arc::default();
        let mut readers = Vec::new();
        if let Some(stream) = process.stdout.take() {
            readers.push(read(stream, pattern.clone(), sender.clone(), &tail));
        }
        if let Some(stream) = process.stderr.take() {
            readers.push(read(stream, pattern, sender, &tail));
        }
        Output { tail, matched, _readers: readers }
    }

    async fn matched(&self) {
        if self.matched.clone().wait_for(|matched| *matched).await.is_err() {
            // Both streams ended without the line: the end of the process says the rest.
            std::future::pending().await
        }
    }

    /// The last of what it printed, for an error.
    pub fn tail(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        match String::from_utf8_lossy(&tail).trim() {
            "" => "the container printed nothing".to_owned(),
            text => format!("the container printed: {text}"),
        }
    }
}

fn read(
    mut stream: impl AsyncRead + Unpin + Send + 'static,
    pattern: Option<LinePattern>,
    matched: watch::Sender<bool>,
    tail: &Arc<Mutex<Vec<u8>>>,
) -> AbortOnDropHandle<()> {
    let tail = tail.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let (mut block, mut line) = (vec![0; 8 * 1024], Vec::new());
        while let Ok(length @ 1..) = stream.read(&mut block).await {
            keep_last(&tail, &block[..length]);
            let Some(pattern) = &pattern else { continue };
            if take_lines(&mut line, &block[..length], pattern) {
                matched.send_replace(true);
            }
        }
        if pattern.is_some_and(|pattern| pattern.0.is_match(&line)) {
            matched.send_replace(true);
        }
    }))
}

/// Adds `block` to the unfinished `line`; whether one that it finished matches.
fn take_lines(line: &mut Vec<u8>, block: &[u8], pattern: &LinePattern) -> bool {
    let mut found = false;
    for piece in block.split_inclusive(|&byte| byte == b'\n') {
        line.extend_from_slice(piece);
        if line.ends_with(b"\n") || line.len() > LINE_MAX {
            found |= pattern.0.is_match(line.trim_ascii_end());
            line.clear();
        }
    }
    found
}

fn keep_last(tail: &Mutex<Vec<u8>>, block: &[u8]) {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.extend_from_slice(block);
    let surplus = tail.len().saturating_sub(TAIL_MAX);
    tail.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_probes() {
        let probe: HttpProbe = "8080/health?deep=1".parse().unwrap();
        assert_eq!(probe, HttpProbe { port: 8080, path: "/health?deep=1".to_owned() });
        assert_eq!("80".parse::<HttpProbe>().unwrap().path, "/");
        for wrong in ["", "0", "70000", "/x", "80/a b", "80/\r\nX: y"] {
            assert!(wrong.parse::<HttpProbe>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lines_match_however_they_are_cut() {
        let pattern: LinePattern = "^ready \\d+$".parse().unwrap();
        let mut line = Vec::new();
        assert!(!take_lines(&mut line, b"starting\nrea", &pattern));
        assert!(!take_lines(&mut line, b"dy 4", &pattern));
        assert!(take_lines(&mut line, b"2\r\nmore", &pattern));
        assert_eq!(line, b"more");
    }

    #[tokio::test]
    async fn a_line_on_either_stream_makes_ready_and_an_early_end_does_not() {
        let run = async |script: &str, pattern: &str| {
            let ready = Ready::Line(pattern.parse().unwrap());
            let mut child = tokio::process::Command::new("sh")
                .args(["-c", script])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let output = Output::of(&mut child, &ready);
            ready.wait(&mut child, &output, &Ports::Machine).await
        };
        assert!(run("echo up >&2; exec sleep 1000", "^up$").await.is_ok());
        assert!(run("echo down; exit 0", "^up$").await.is_err());
    }

    #[tokio::test]
    async fn a_service_is_ready_when_it_listens_and_anything_else_when_it_ends() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = ImageConfig { exposed_ports: vec![port], ..ImageConfig::default() };
        let ready = Ready::expected(&service);
        assert!(ready.check_free().await.is_err());
        let mut sleeps =
            tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let output = Output::of(&mut sleeps, &ready);
        ready.wait(&mut sleeps, &output, &Ports::Machine).await.unwrap();
        assert!(matches!(Ready::expected(&ImageConfig::default()), Ready::Exit));
    }

    #[tokio::test]
    async fn http_is_ready_with_a_success_only() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for status in ["503 Starting", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _length = stream.read(&mut request).await.unwrap();
                let reply = format!("HTTP/1.1 {status}\r\n\r\n");
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        let probe = HttpProbe { port, path: "/".to_owned() };
        probe.answers(&Ports::Machine).await;
        server.await.unwrap();
    }
}
