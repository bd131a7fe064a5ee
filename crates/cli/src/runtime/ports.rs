//! A container's ports, as this machine reaches them.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// On loopback a connection is taken or refused at once, unless those who wait to be accepted are too many.
const CONNECT_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub enum Ports {
    /// The container has the machine's network.
    Machine,
    /// It has one of its own: that of the process whose number the runtime writes into this file.
    Own { pid_file: PathBuf },
}

impl Ports {
    /// Connects to a port of loopback, there.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let Ports::Own { pid_file } = self else { return TcpStream::connect(address).await };
        let stream = inside(network_of(pid_file)?, address).await?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }
}

fn network_of(pid_file: &Path) -> io::Result<File> {
    let process: u32 = fs::read_to_string(pid_file)?.trim().parse().map_err(io::Error::other)?;
    File::open(format!("/proc/{process}/ns/net"))
}

/// By a thread that goes into `network` and never comes back: a socket belongs where it was made, whoever has it.
async fn inside(network: File, address: SocketAddr) -> io::Result<std::net::TcpStream> {
    let (sender, connected) = oneshot::channel();
    let connect = move || {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        std::net::TcpStream::connect_timeout(&address, CONNECT_MAX)
    };
    std::thread::Builder::new().name("inside".to_owned()).spawn(move || drop(sender.send(connect())))?;
    connected.await.map_err(io::Error::other)?
}
