//! The page on access, line by line: from `keys init` to a node that streams over TLS, and to one that was revoked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use system_tests::{Numbered, Scratch, binaries};
use testkit::{LayoutWriter, Server, port};

const PAGE: &str = include_str!("../../../../docs/access.md");
/// Services are ready within this time.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
/// What is revoked must be so everywhere within a minute; a test has some more, as the machine may be busy.
const REVOKED_WITHIN: Duration = Duration::from_secs(90);

/// The page's machine in a folder: its paths and ports are replaced by ours, the rest stands as it is written.
struct Page {
    scratch: Scratch,
    nats: u16,
    identity: u16,
    /// Stands for the page's image.
    image: String,
    services: Vec<(String, Server)>,
}

impl Page {
    fn new() -> anyhow::Result<Page> {
        let scratch = Scratch::new()?;
        let image = layout(&scratch, "image", 7)?;
        Ok(Page { scratch, nats: port::free()?, identity: port::free()?, image, services: Vec::new() })
    }

    fn here(&self, line: &str) -> String {
        let folder = |path: &str, name: &str, line: String| {
            line.replace(path, &self.scratch.path(name).display().to_string())
        };
        let line = folder("/etc/sluice", "etc", line.to_owned());
        let line = folder("/srv/sluice", "srv", line);
        let line = folder("/run/sluice", "run", line);
        let line = line.replace("debian:12 /mnt", &format!("{} {}", self.image, self.root().display()));
        let line = line.replace("127.0.0.1:7470", &format!("127.0.0.1:{}", self.identity));
        let (state, run) = (self.scratch.path("state"), self.scratch.path("run"));
        let more = match line.split(' ').next() {
            Some("sluice") if line.contains("keys init") => {
                let nats = self.nats;
                format!(" --url tls://127.0.0.1:{nats} --listen 127.0.0.1:{nats}")
            }
            Some("sluice") if line.contains("serve.toml") => {
                let served = format!(
                    " --set serve.identity.listen=127.0.0.1:{} --set fetcher.local_sources=true",
                    self.identity
                );
                let served = if line.contains(" serve ") { served } else { String::new() };
                format!(" --state {} --node {}{served}", state.display(), run.join("node.sock").display())
            }
            Some("fetcher") => " --set fetcher.local_sources=true".to_owned(),
            Some("identity") => format!(" --set identity.listen=127.0.0.1:{}", self.identity),
            Some("frontend") => format!(
                " --set frontend.state={} --set frontend.socket={}",
                state.display(),
                run.join("node.sock").display()
            ),
            _ => String::new(),
        };
        // A redirection stays at the end.
        match line.split_once(" > ") {
            Some((command, file)) => format!("{command}{more} > {file}"),
            None => format!("{line}{more}"),
        }
    }

    fn root(&self) -> PathBuf {
        self.scratch.path("root")
    }

    fn shell(&self, line: &str) -> anyhow::Result<Command> {
        let beside = binaries::path("sluice")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", beside.parent().context("a folder")?.display());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {line}")]).env("PATH", path);
        Ok(command)
    }

    /// Starts a service, or runs a command to its end, which must be a good one.
    fn run(&mut self, line: &str) -> anyhow::Result<String> {
        let line = self.here(line);
        let name = line.split(' ').next().unwrap_or_default().to_owned();
        let serves = line.contains(" serve ");
        if name == "sluice" && !serves {
            let mut output = self.output(&line)?;
            let begun = Instant::now();
            // Whoever types it is slower than services start.
            while line.contains(" check ") && !output.status.success() && begun.elapsed() < STARTED_WITHIN {
                std::thread::sleep(Duration::from_millis(500));
                output = self.output(&line)?;
            }
            ensure!(
                output.status.success(),
                "{line}\n{}{}\n{}",
                text(&output.stdout),
                text(&output.stderr),
                self.logs()
            );
            return Ok(text(&output.stdout));
        }
        let server =
            Server::spawn(self.shell(&line)?, &self.scratch.path(&format!("{name}.log")), "this workspace")?;
        self.services.push((name.clone(), server));
        let (socket, ports) = (self.scratch.path("run").join("node.sock"), (self.nats, self.identity));
        let (_, server) = self.services.last_mut().context("it was pushed")?;
        match name.as_str() {
            "nats-server" => server.wait_for_port(&name, ports.0)?,
            "identity" => server.wait_for_port(&name, ports.1)?,
            "frontend" | "sluice" => server.wait_until(&name, || socket.exists())?,
            "cache" => {
                let log = self.scratch.path("cache.log");
                server.wait_until(&name, || {
                    fs::read_to_string(&log).is_ok_and(|log| log.contains("serving content"))
                })?;
            }
            _ => {}
        }
        Ok(String::new())
    }

    fn output(&self, line: &str) -> anyhow::Result<Output> {
        self.shell(line)?.output().with_context(|| line.to_owned())
    }

    /// A command of the operator's, as the page's others.
    fn operator(&self, arguments: &str) -> anyhow::Result<Output> {
        let settings = self.scratch.path("etc/mesh/operators/operator/sluice.toml");
        let socket = self.scratch.path("run").join("node.sock");
        self.output(&format!(
            "sluice --config {} --node {} {arguments}",
            settings.display(),
            socket.display()
        ))
    }

    fn logs(&self) -> String {
        self.services.iter().map(|(name, server)| format!("== {name}\n{}", server.log())).collect()
    }
}

fn numbered(seed: u64) -> Numbered {
    Numbered { files: 3, len: 50_000, seed }
}

/// An image on this machine's disk; its reference.
fn layout(scratch: &Scratch, name: &str, seed: u64) -> anyhow::Result<String> {
    let mut layout = LayoutWriter::create(&scratch.path(name))?;
    layout.image("1", &numbered(seed).image()?)?;
    Ok(layout.reference("1"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of the shell block under a title of the page.
fn lines(title: &str) -> impl Iterator<Item = &'static str> {
    let title = format!("## {title}");
    let of_title = PAGE.lines().skip_while(move |line| *line != title).skip(1);
    let mut inside = false;
    of_title.take_while(|line| !line.starts_with("## ")).filter(move |line| {
        let fence = line.starts_with("```");
        inside = if fence { *line == "```sh" } else { inside };
        inside && !fence && !line.is_empty()
    })
}

/// Settles within `bound`.
fn until(bound: Duration, what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !done()? {
        ensure!(begun.elapsed() < bound, "{what}: not within {bound:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn one_process_serves_all_six_services_each_as_itself() -> anyhow::Result<()> {
    let mut page = Page::new()?;
    fs::create_dir_all(page.root())?;
    fs::create_dir_all(page.scratch.path("etc"))?;
    let mut printed = String::new();
    for line in lines("From nothing to a mesh on one machine") {
        printed += &page.run(line)?;
    }
    for service in ["fetcher", "policy", "quota", "events", "cache"] {
        assert!(printed.contains(&format!("√ {service} {service}-")), "{service} is not there: {printed}");
    }
    numbered(7).read(&page.root(), 0..3)?;
    let events = page.scratch.path("srv/events.json");
    let told =
        || Ok(fs::read_to_string(&events).is_ok_and(|told| told.contains("dev.sluice.image.streaming.v1")));
    until(STARTED_WITHIN, "an event in a file", told)?;
    // Each service has a connection as itself: NATS refuses what is another's.
    let logs = page.logs();
    assert!(!logs.contains("Permissions Violation"), "{logs}");

    let nodes = || {
        let checked =
            page.output(&page.here("sluice --config /etc/sluice/mesh/serve.toml check --mesh --this-node"))?;
        let said = text(&checked.stdout);
        Ok(said.contains("√ 1 of 1 nodes are ready")
            && said.contains("√ this machine's clock is that of the mesh"))
    };
    until(STARTED_WITHIN, "the node is among those of the mesh", nodes)?;

    // Another node joins by the identity service in the same process.
    let (mesh, token) = (page.scratch.path("etc/mesh"), page.scratch.path("etc/token"));
    let joined = page.output(&format!(
        "sh -c 'sluice keys token {} --for-node node-2 > {} && sluice enroll https://127.0.0.1:{} --token-file {} --as node-2 --into {}'",
        mesh.display(),
        token.display(),
        page.identity,
        token.display(),
        page.scratch.path("etc/node").display()
    ))?;
    ensure!(joined.status.success(), "{}\n{logs}", text(&joined.stderr));

    // The project is switched off and on while all of it runs.
    let with = |arguments: &str| {
        let settings = mesh.join("serve.toml");
        let (state, socket) = (page.scratch.path("state"), page.scratch.path("run").join("node.sock"));
        page.output(&format!(
            "sluice --config {} --state {} --node {} {arguments}",
            settings.display(),
            state.display(),
            socket.display()
        ))
    };
    let switched = with("project default --streaming off")?;
    ensure!(switched.status.success(), "{}\n{}", text(&switched.stderr), page.logs());
    let other = layout(&page.scratch, "other", 8)?;
    let target = page.scratch.mount_point("other-root")?;
    let mount = format!("mount {other} {}", target.display());
    let refused = with(&mount)?;
    let said = text(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("switched off"), "{said}\n{}", page.logs());
    let shown = text(&with("project default --json")?.stdout);
    ensure!(shown.contains("\"live\"") && shown.contains("false"), "{shown}");
    ensure!(with("project default --streaming forget")?.status.success(), "{}", page.logs());
    let mounted = with(&mount)?;
    ensure!(mounted.status.success(), "{}\n{}", text(&mounted.stderr), page.logs());
    for root in [target, page.root()] {
        with(&format!("umount {}", root.display()))?;
    }
    Ok(())
}

#[test]
fn the_page_leads_to_a_mesh_that_streams_and_revokes() -> anyhow::Result<()> {
    let mut page = Page::new()?;
    fs::create_dir_all(page.root())?;
    fs::create_dir_all(page.scratch.path("etc"))?;
    let mut printed = String::new();
    for line in lines("Each service by itself") {
        printed += &page.run(line)?;
    }
    for service in ["fetcher", "policy", "quota", "events", "cache"] {
        assert!(printed.contains(&format!("√ {service} {service}-")), "{service} is not there: {printed}");
    }
    numbered(7).read(&page.root(), 0..3)?;
    no_secret_is_told(&page)?;

    // What happened on the node came to the events service, and what it may use is counted.
    let events = page.scratch.path("srv/events.json");
    let told =
        || Ok(fs::read_to_string(&events).is_ok_and(|told| told.contains("dev.sluice.image.streaming.v1")));
    until(STARTED_WITHIN, "an event in a file", told)?;
    for question in ["quota set content_requests minute 100000", "quota show"] {
        let answer = page.operator(question)?;
        ensure!(answer.status.success(), "{question}\n{}\n{}", text(&answer.stderr), page.logs());
    }

    // What the node has goes on; what it asks for from now on it does not get.
    let revoked = page.operator("revoke node node-1")?;
    ensure!(revoked.status.success(), "{}\n{}", text(&revoked.stderr), page.logs());
    let other = layout(&page.scratch, "other", 8)?;
    let target = page.scratch.mount_point("other-root")?;
    let mount = format!("mount {other} {}", target.display());
    until(REVOKED_WITHIN, "a revoked node is refused", || {
        let mounted = page.operator(&mount)?;
        if mounted.status.success() {
            page.operator(&format!("umount {}", target.display()))?;
        }
        Ok(!mounted.status.success() && text(&mounted.stderr).contains("revoked"))
    })?;
    ensure!(page.operator("revoke node node-1 --undo")?.status.success(), "{}", page.logs());
    until(REVOKED_WITHIN, "a node that is let back in", || Ok(page.operator(&mount)?.status.success()))?;

    // Its identity goes: NATS puts it out.
    let mesh = page.scratch.path("etc/mesh");
    let gone = page.output(&format!("sluice keys revoke {} node-1 --push", mesh.display()))?;
    ensure!(gone.status.success(), "{}\n{}", text(&gone.stderr), page.logs());
    let renewed = page.output(&format!(
        "sluice enroll https://127.0.0.1:{} --token-file /dev/null --as node-1 --into {}",
        page.identity,
        page.scratch.path("etc/node").display()
    ))?;
    assert!(text(&renewed.stderr).contains("revoked"), "{}", text(&renewed.stderr));
    Ok(())
}

/// Keys and tokens stand in their files, and nowhere else that the mesh has written.
fn no_secret_is_told(page: &Page) -> anyhow::Result<()> {
    let token = fs::read_to_string(page.scratch.path("etc/token"))?;
    let mut secrets: Vec<String> = vec![token.trim().split('.').nth(2).context("a token")?.to_owned()];
    for file in files(&page.scratch.path("etc")) {
        let content = fs::read(&file).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        secrets.extend(
            content.lines().filter(|line| line.starts_with('S') && line.len() == 58).map(str::to_owned),
        );
    }
    assert!(secrets.len() > 8, "{} secrets were found", secrets.len());
    let logs = page.logs();
    assert!(!secrets.iter().any(|secret| logs.contains(secret.as_str())), "a secret stands in a log");
    Ok(())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
