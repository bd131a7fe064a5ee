use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::*;

/// A condition is waited for as long.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Which of these tests is run as the holder, in a process of its own.
const SOCKET: &str = "SLUICE_TEST_HOLDER";

/// A holder in a process of its own, so that it can be killed. It is this program, which runs one of these tests.
struct Holder(Child);

impl Holder {
    fn start(socket: &Path) -> Holder {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "descriptors::tests::is_the_holder_when_it_is_told_to", "--nocapture"]);
        let child = command.env(SOCKET, socket).stdout(Stdio::null()).spawn().unwrap();
        wait_until(|| UnixStream::connect(socket).is_ok());
        Holder(child)
    }

    fn kill(self) {
        drop(self);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn is_the_holder_when_it_is_told_to() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        let _earlier = std::fs::remove_file(&socket);
        holder::hold(&UnixListener::bind(socket).unwrap()).unwrap();
    }
}

fn wait_until(done: impl Fn() -> bool) {
    let asked = Instant::now();
    while !done() {
        assert!(asked.elapsed() < WAIT_MAX, "it did not come about");
        sleep(Duration::from_millis(20));
    }
}

fn socket(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("holder.sock")
}

/// Whether the held descriptor is the other end of `mine`.
fn is_the_end_of(held: OwnedFd, mine: &mut UnixStream) -> bool {
    UnixStream::from(held).write_all(b"x").unwrap();
    mine.read(&mut [0]).unwrap() == 1
}

#[test]
fn what_was_put_outlives_who_put_it() {
    let folder = tempfile::tempdir().unwrap();
    let holder = Holder::start(&socket(&folder));
    let (mut mine, given) = UnixStream::pair().unwrap();
    let first = Descriptors::kept_by(Some(&socket(&folder))).unwrap();
    assert!(first.take(Name::NodeSocket).unwrap().is_none());
    first.put(Name::NodeSocket, &given).unwrap();
    drop((first, given));
    let second = Descriptors::kept_by(Some(&socket(&folder))).unwrap();
    assert!(is_the_end_of(second.take(Name::NodeSocket).unwrap().unwrap(), &mut mine));
    assert!(second.take(Name::FuseConnection).unwrap().is_none(), "names are told apart");
    holder.kill();
}

#[test]
fn another_holder_gets_what_the_one_before_had() {
    let folder = tempfile::tempdir().unwrap();
    let holder = Holder::start(&socket(&folder));
    let (mut mine, given) = UnixStream::pair().unwrap();
    let descriptors = Descriptors::kept_by(Some(&socket(&folder))).unwrap();
    descriptors.put(Name::FuseConnection, &given).unwrap();
    holder.kill();
    assert!(descriptors.take(Name::FuseConnection).unwrap().is_none(), "nobody has it");
    // One that is put while none is there is given to the next one, too.
    descriptors.put(Name::NodeSocket, &given).unwrap();
    let holder = Holder::start(&socket(&folder));
    for name in [Name::FuseConnection, Name::NodeSocket] {
        let other = Descriptors::kept_by(Some(&socket(&folder))).unwrap();
        wait_until(|| other.take(name).unwrap().is_some());
        assert!(is_the_end_of(other.take(name).unwrap().unwrap(), &mut mine));
    }
    holder.kill();
}

#[test]
fn nonsense_ends_its_own_connection_alone() {
    let folder = tempfile::tempdir().unwrap();
    let holder = Holder::start(&socket(&folder));
    let descriptors = Descriptors::kept_by(Some(&socket(&folder))).unwrap();
    let (_mine, given) = UnixStream::pair().unwrap();
    for nonsense in [&b"Pnode-socket"[..], b"Tno-such-name", b"Xnode-socket", b"T\xff\xff", &[b'T'; 200]] {
        let mut stream = UnixStream::connect(socket(&folder)).unwrap();
        stream.write_all(nonsense).unwrap();
        stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "{nonsense:?} got an answer");
    }
    descriptors.put(Name::NodeSocket, &given).unwrap();
    assert!(descriptors.take(Name::NodeSocket).unwrap().is_some());
    // What is of no more use to anybody is not kept.
    drop((_mine, given));
    wait_until(|| descriptors.take(Name::NodeSocket).unwrap().is_none());
    holder.kill();
}
