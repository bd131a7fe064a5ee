//! Reading while the link stalls, drops and comes back, and while services are killed and come
//! back, gives the right bytes.

use std::fs;
use std::path::PathBuf;
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use system_tests::mesh::Mesh;
use system_tests::noise;
use testkit::{ImageSpec, LayoutWriter, Tarball};

const FILES: u64 = 30;
const FILE_LEN: usize = 1_000_000;

/// A mesh behind a slow link, with an image mounted whose reading takes some seconds.
struct Slow {
    mesh: Mesh,
    root: PathBuf,
}

impl Slow {
    fn new() -> anyhow::Result<Slow> {
        let mesh = Mesh::start(&["--rtt", "5ms", "--bandwidth", "60Mbit"])?;
        let mut layout = LayoutWriter::create(&mesh.scratch().path("layout"))?;
        let tar = (0..FILES).fold(Tarball::new(), |tar, number| {
            tar.file(&format!("file-{number}"), &noise(number, FILE_LEN))
        });
        layout.image("app", &ImageSpec::new([tar.finish()]))?;
        let root = mesh.mount(&layout.reference("app"), "root")?;
        Ok(Slow { mesh, root })
    }

    /// Reads every file and compares; runs beside the faults.
    fn reader(&self) -> JoinHandle<anyhow::Result<()>> {
        let root = self.root.clone();
        thread::spawn(move || {
            for number in 0..FILES {
                let bytes = fs::read(root.join(format!("file-{number}")))?;
                anyhow::ensure!(bytes == noise(number, FILE_LEN), "file-{number} has wrong bytes");
            }
            Ok(())
        })
    }
}

fn joined(reader: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
}

#[test]
fn a_link_that_stalls_drops_and_comes_back() -> anyhow::Result<()> {
    let mut slow = Slow::new()?;
    let reader = slow.reader();
    for word in ["stall", "resume", "cut", "stall", "cut", "resume", "cut"] {
        sleep(Duration::from_millis(400));
        assert_eq!(slow.mesh.link.tell(word)?, "ok");
    }
    joined(reader)
}

#[test]
fn a_nats_server_that_is_away_while_content_is_read() -> anyhow::Result<()> {
    let mut slow = Slow::new()?;
    let reader = slow.reader();
    slow.mesh.backend.nats.kill()?;
    sleep(Duration::from_secs(1));
    slow.mesh.link.tell("cut")?;
    sleep(Duration::from_secs(1));
    slow.mesh.backend.nats.restart()?;
    joined(reader)
}
