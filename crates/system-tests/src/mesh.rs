//! Each service as a process of its own, on a real NATS server, as an operator would run them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use testkit::port;

use crate::services::{Backend, Service};
use crate::{Scratch, binaries};

/// A fetcher, a cache and a frontend on NATS, with a simulated link between the last two.
#[derive(Debug)]
pub struct Mesh {
    pub backend: Backend,
    pub link: Link,
    pub frontend: Service,
    /// Of the frontend.
    settings: Vec<String>,
    socket: PathBuf,
    scratch: Scratch,
}

impl Mesh {
    /// Starts everything; `link` are arguments of `sluice link`.
    pub fn start(link: &[&str]) -> anyhow::Result<Mesh> {
        Mesh::start_with(link, &[])
    }

    /// The same, with settings of the frontend.
    pub fn start_with(link: &[&str], frontend: &[&str]) -> anyhow::Result<Mesh> {
        let scratch = Scratch::new()?;
        let cache_port = port::free()?;
        let link = Link::start(cache_port, link)?;
        let advertise = format!("cache.advertise=http://127.0.0.1:{}", link.port);
        let local = "fetcher.local_sources=true".to_owned();
        let backend = Backend::start(&scratch, cache_port, &[local], &[advertise])?;
        let settings: Vec<String> = frontend.iter().map(|setting| (*setting).to_owned()).collect();
        let (frontend, socket) = start_node(&backend, &scratch, "node", &settings)?;
        Ok(Mesh { backend, link, frontend, settings, socket, scratch })
    }

    /// The node goes away, and another one takes its place, which has never seen an image.
    pub fn replace_node(&mut self, name: &str) -> anyhow::Result<()> {
        self.frontend.kill()?;
        (self.frontend, self.socket) = start_node(&self.backend, &self.scratch, name, &self.settings)?;
        Ok(())
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// `sluice ARGUMENTS` against this mesh, which must succeed; what it printed.
    pub fn succeed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = binaries::command("sluice")?
            .args(["--nats", &self.backend.nats.url(), "--node"])
            .arg(&self.socket)
            .arg("--state")
            .arg(self.scratch.path("cli"))
            .args(arguments)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sluice {arguments:?}: {errors}\n{}", self.logs());
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn mount(&self, reference: &str, name: &str) -> anyhow::Result<PathBuf> {
        let root = self.scratch.mount_point(name)?;
        self.succeed(&["mount", reference, root.to_str().context("a UTF-8 path")?])?;
        Ok(root)
    }

    fn logs(&self) -> String {
        [&self.backend.fetcher, &self.backend.cache, &self.frontend]
            .map(|service| service.server.log())
            .concat()
    }
}

/// A frontend with a folder and a socket of its own; that socket.
fn start_node(
    backend: &Backend,
    scratch: &Scratch,
    name: &str,
    more: &[String],
) -> anyhow::Result<(Service, PathBuf)> {
    let socket = scratch.path(&format!("{name}.sock"));
    let settings = [
        format!("frontend.node={name}"),
        format!("frontend.state={}", scratch.path(name).display()),
        format!("frontend.socket={}", socket.display()),
        format!("frontend.trusted_keys=[\"{}\"]", backend.key),
    ];
    let mut frontend = backend.service(scratch, "frontend", &[&settings, more].concat())?;
    frontend.server.wait_until("frontend", || socket.exists())?;
    Ok((frontend, socket))
}

/// `sluice link`: a TCP link of a given shape that can be stalled and cut.
#[derive(Debug)]
pub struct Link {
    pub port: u16,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Link {
    pub fn start<S: AsRef<OsStr>>(to: u16, arguments: &[S]) -> anyhow::Result<Link> {
        let mut process = link_command(to, arguments)?.spawn().context("starting sluice link")?;
        let input = process.stdin.take().context("its input")?;
        let mut output = BufReader::new(process.stdout.take().context("its output")?);
        let line = read_line(&mut output)?;
        let port = line.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("sluice link said {line:?}"))?;
        Ok(Link { port, process, input, output })
    }

    /// `stall`, `resume`, `cut` or `counters`; the answer.
    pub fn tell(&mut self, word: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{word}")?;
        read_line(&mut self.output)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn link_command<S: AsRef<OsStr>>(to: u16, arguments: &[S]) -> anyhow::Result<Command> {
    let mut command = binaries::command("sluice")?;
    command.args(["link", "--to", &format!("127.0.0.1:{to}")]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command)
}

fn read_line(output: &mut BufReader<ChildStdout>) -> anyhow::Result<String> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
