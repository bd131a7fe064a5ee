//! Asks a running service whether it can work: `FETCHER health` and `sluice health`, for containers, which have no shell.

use std::io::{self, Read as _, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Where images let their service answer.
pub const URL: &str = "http://127.0.0.1:9090/readyz";
/// For an answer, connecting included; orchestrators give up after less.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Of an answer, its head included: ours are a line.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// What is shown of it, in characters.
const LINE_MAX: usize = 400;

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    /// HTTP at `host:port`, with the path.
    Http { authority: &'a str, path: &'a str },
    /// A socket of a process that answers no HTTP: it is there when it takes a connection.
    Socket(&'a str),
}

/// Asks `url`, which is `http://HOST:PORT/PATH` or `unix:PATH`; an answer of 200 is good. Returns what it says in one line; an error is one
/// line, too.
pub fn ask(url: &str) -> anyhow::Result<String> {
    let asked = match target(url)? {
        Target::Http { authority, path } => ask_http(authority, path),
        Target::Socket(path) => {
            UnixStream::connect(path).map(|_| "listens".to_owned()).map_err(anyhow::Error::from)
        }
    };
    asked.with_context(|| format!("{url} is not healthy"))
}

fn target(url: &str) -> anyhow::Result<Target<'_>> {
    if let Some(path) = url.strip_prefix("unix:") {
        return Ok(Target::Socket(path.strip_prefix("//").unwrap_or(path)));
    }
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("{url:?} is not http://HOST:PORT/PATH or unix:PATH; lifecycle.admin is served without TLS");
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if authority.is_empty() || !plain(authority) || !plain(path) {
        bail!("{url:?} is not http://HOST:PORT/PATH");
    }
    Ok(Target::Http { authority, path: if path.is_empty() { "/" } else { path } })
}

fn ask_http(authority: &str, path: &str) -> anyhow::Result<String> {
    let port_given = authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok());
    let address = if port_given { authority.to_owned() } else { format!("{authority}:80") };
    let mut last = io::Error::other("the name means no address");
    for address in address.to_socket_addrs().with_context(|| format!("looking up {authority}"))? {
        match TcpStream::connect_timeout(&address, ANSWER_MAX) {
            Ok(stream) => return exchange(stream, authority, path),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

fn exchange(mut stream: TcpStream, authority: &str, path: &str) -> anyhow::Result<String> {
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    // Of HTTP 1.0 an answer ends with its connection, and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).context("reading the answer")?;
    judge(&String::from_utf8_lossy(&answer))
}

fn judge(answer: &str) -> anyhow::Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut words = head.split_whitespace();
    let (protocol, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !protocol.starts_with("HTTP/") {
        bail!("what answers does not speak HTTP");
    }
    let line: String = body.lines().next().unwrap_or_default().trim().chars().take(LINE_MAX).collect();
    match status {
        "200" => Ok(line),
        _ if line.is_empty() => bail!("it answers {status}"),
        _ => bail!("{line}"),
    }
}

/// Asks, and prints the answer; the error of one that is not well is one line.
pub fn report(url: &str) -> anyhow::Result<()> {
    match ask(url) {
        Ok(line) => writeln!(io::stdout(), "{line}").context("printing the answer"),
        Err(error) => bail!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{Readiness, admin, telemetry};

    #[test]
    fn takes_addresses_apart() {
        let http = |authority, path| Target::Http { authority, path };
        assert_eq!(target("http://a:1/readyz?x").unwrap(), http("a:1", "/readyz?x"));
        assert_eq!(target("http://[::1]:9090").unwrap(), http("[::1]:9090", "/"));
        assert_eq!(target("unix:///run/a.sock").unwrap(), Target::Socket("/run/a.sock"));
        assert_eq!(target("unix:/run/a.sock").unwrap(), Target::Socket("/run/a.sock"));
        for bad in ["https://a/", "http://", "http:///x", "http://a/ b", "http://a/\r\nX: y", "a:1"] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_200_is_good_and_why_is_told() {
        assert_eq!(judge("HTTP/1.0 200 OK\r\na: b\r\n\r\nready\n").unwrap(), "ready");
        let error = judge("HTTP/1.0 503 Service Unavailable\r\n\r\nbus: no connection\nmore").unwrap_err();
        assert_eq!(error.to_string(), "bus: no connection");
        assert_eq!(judge("HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().to_string(), "it answers 404");
        assert!(judge("SSH-2.0-OpenSSH").is_err());
        assert!(judge("").is_err());
    }

    #[tokio::test]
    async fn asks_a_real_service() {
        let (ready, shutdown, tasks) = (Readiness::default(), CancellationToken::new(), TaskTracker::new());
        let waiting = ready.wait_for("store");
        let admin = admin::Admin { metrics: telemetry::install().unwrap(), ready: ready.clone() };
        let address =
            admin::serve(([127, 0, 0, 1], 0).into(), admin, shutdown.clone(), &tasks).await.unwrap();
        let asked = move |path: &'static str| {
            tokio::task::spawn_blocking(move || ask(&format!("http://{address}/{path}")))
        };
        let error = format!("{:#}", asked("readyz").await.unwrap().unwrap_err());
        assert!(error.ends_with("is not healthy: waiting for store"), "{error}");
        assert_eq!(asked("livez").await.unwrap().unwrap(), "alive");
        waiting.ready();
        assert_eq!(asked("readyz").await.unwrap().unwrap(), "ready");
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        assert!(asked("readyz").await.unwrap().is_err(), "nobody answers any more");
    }

    #[test]
    fn a_socket_is_there_while_somebody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let url = format!("unix:{}", path.display());
        assert!(ask(&url).is_err());
        let listener = UnixListener::bind(&path).unwrap();
        ask(&url).unwrap();
        drop(listener);
        assert!(ask(&url).is_err(), "the file alone is nobody");
    }
}
