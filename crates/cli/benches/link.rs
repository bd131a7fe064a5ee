//! What the simulated link moves, beside a connection over loopback without it: `cargo bench -p cli --bench link`.
//!
//! Prints a table of ratios: rates by themselves tell about the machine.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use cli::link::{Carriers, Link, Nic, Shape, processor_time};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Moved for each line.
const BYTES: u64 = 1 << 30;
/// Connections at once; a pull has several.
const CONNECTIONS: u64 = 3;
const BLOCK: usize = 256 * 1024;

fn main() -> anyhow::Result<()> {
    // One that links do not run on.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let server = serve().await?;
    let direct = moves(server).await?;
    let mut lines = vec![format!("| {} | {:.0} MB/s | 1.00 | | |", "loopback", rate(direct) / 1e6)];
    // Threads that ended are not counted any more: these stay.
    let carriers = Carriers::new()?;
    for (rtt, bandwidth) in [
        ("0ms", None),
        ("1ms", None),
        ("20ms", None),
        ("0ms", Some("10Gbit")),
        ("1ms", Some("10Gbit")),
        ("1ms", Some("1Gbit")),
        ("20ms", Some("200Mbit")),
    ] {
        let shape = Shape {
            rtt: humantime::parse_duration(rtt)?,
            bandwidth: bandwidth.map(str::parse).transpose().map_err(anyhow::Error::msg)?,
        };
        let link = Link::start(&carriers, Nic::new(shape), "127.0.0.1:0".parse()?)?;
        link.lead_to(server);
        let before = processor_time();
        let took = moves(link.address()).await?;
        let cost = processor_time().saturating_sub(before);
        let claim = shape.bandwidth.map(|bandwidth| rate(took) / rate(bandwidth.time_for(BYTES)));
        lines.push(format!(
            "| {rtt}, {} | {:.0} MB/s | {:.2} | {} | {:.2} s |",
            bandwidth.unwrap_or("unlimited"),
            rate(took) / 1e6,
            rate(took) / rate(direct),
            claim.map_or_else(String::new, |share| format!("{share:.3}")),
            cost.as_secs_f64() * 1e9 / BYTES as f64,
        ));
    }
    println!(
        "| link | moved | × loopback | × its bandwidth | processor time of the link for a GB |\n|---|---|---|---|---|"
    );
    println!("{}", lines.join("\n"));
    Ok(())
}

fn rate(took: Duration) -> f64 {
    BYTES as f64 / took.as_secs_f64()
}

/// A server that sends its share to everybody.
async fn serve() -> anyhow::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let block = vec![7; BLOCK];
                for _ in 0..BYTES / CONNECTIONS / BLOCK as u64 + 1 {
                    stream.write_all(&block).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    Ok(address)
}

async fn moves(address: std::net::SocketAddr) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let connections = (0..CONNECTIONS).map(|_| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            let (mut block, mut received) = (vec![0; BLOCK], 0);
            while let length @ 1.. = stream.read(&mut block).await? {
                received += length as u64;
            }
            anyhow::ensure!(received >= BYTES / CONNECTIONS, "{received} bytes came");
            Ok(())
        })
    });
    for connection in futures::future::join_all(connections).await {
        connection.context("a connection")??;
    }
    Ok(began.elapsed())
}
