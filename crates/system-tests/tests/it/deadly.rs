//! An image that fetchers die of is refused before it goes through all of them, and others are not.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use system_tests::services::Backend;
use system_tests::{Scratch, binaries, noise};
use testkit::{Compression, ImageSpec, LayoutWriter, Tarball, port};

/// How long a step may take before the test gives up; far more than it needs.
const STEP_MAX: Duration = Duration::from_secs(180);

struct Site {
    scratch: Scratch,
    backend: Backend,
}

impl Site {
    fn sluice(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = binaries::command("sluice")?;
        command.args(["--nats", &self.backend.nats.url(), "--state"]).arg(self.scratch.path("cli"));
        command.args(arguments).stderr(Stdio::piped()).stdout(Stdio::null());
        Ok(command)
    }

    /// How many attempts are noted.
    fn attempts(&self) -> usize {
        let folder = self.scratch.path("mesh-store/default/attempts");
        let notes = fs::read_dir(folder).into_iter().flatten().flatten();
        notes.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default().lines().count()).sum()
    }

    /// SIGKILL to the fetcher while it makes its attempt of this number, and another one in its place.
    fn die_at(&mut self, attempt: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.attempts() != attempt {
            ensure!(started.elapsed() < STEP_MAX, "attempt {attempt} was not made");
            sleep(Duration::from_millis(2));
        }
        self.backend.fetcher.kill()?;
        ensure!(self.attempts() == attempt, "attempt {attempt} came to its end before the kill");
        self.backend.fetcher.restart()
    }
}

#[test]
fn an_image_of_which_two_fetchers_died_is_refused_and_another_is_not() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    // As long as an import needs to be killed in it.
    let layer = |seed: u64| {
        let file =
            |tar: Tarball, at: u64| tar.file(&format!("{seed}-{at}"), &noise(100 * seed + at, 2_000_000));
        (0..40).fold(Tarball::new(), file).finish()
    };
    let layers = (0..3).map(|seed| (layer(seed), Some(Compression::None))).collect();
    layout.image("deadly", &ImageSpec { layers, config: None })?;
    layout.image("other", &ImageSpec::new([Tarball::new().file("a", b"harmless").finish()]))?;
    let local = "fetcher.local_sources=true".to_owned();
    let backend = Backend::start(&scratch, port::free()?, &[local], &[])?;
    let mut site = Site { scratch, backend };

    // It asks again whenever its fetcher went away.
    let importing = site.sluice(&["import", &layout.reference("deadly")])?.spawn()?;
    site.die_at(1)?;
    site.die_at(2)?;
    let output = importing.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it was imported: {errors}");
    ensure!(errors.contains("2 fetchers died while they imported it"), "{errors}");
    ensure!(errors.contains("refused_after_deaths"), "{errors}");

    let output = site.sluice(&["import", &layout.reference("other")])?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Its own attempt was cleared.
    ensure!(site.attempts() == 2, "{} attempts are noted", site.attempts());
    Ok(())
}
