use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::shape::next_turn;
use super::*;

/// A server that sends back what it gets.
async fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

async fn link(shape: Shape) -> (Link, TcpStream) {
    let any = "127.0.0.1:0".parse().unwrap();
    let link = Link::start(Nic::new(shape), any).await.unwrap();
    link.lead_to(echo().await);
    let client = TcpStream::connect(link.address()).await.unwrap();
    (link, client)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn carries_every_byte_in_order_and_counts_both_ways() {
    let shape = Shape { rtt: Duration::from_millis(2), bandwidth: Some("800Mbit".parse().unwrap()) };
    let (link, client) = link(shape).await;
    let sent = pattern(1_000_003);
    let (mut read, mut write) = client.into_split();
    let writing = tokio::spawn({
        let sent = sent.clone();
        async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        }
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    writing.await.unwrap();
    assert!(received == sent);
    assert_eq!(link.counters(), Counters { up: sent.len() as u64, down: sent.len() as u64 });
}

#[tokio::test]
async fn a_stalled_link_delivers_nothing_until_it_is_resumed() {
    let (link, mut client) = link(Shape::default()).await;
    link.stall();
    client.write_all(b"late").await.unwrap();
    let mut buffer = [0; 4];
    // Can only fail if a byte does arrive: no timing is asserted.
    let early = tokio::time::timeout(Duration::from_millis(50), client.read_exact(&mut buffer)).await;
    assert!(early.is_err());
    assert_eq!(link.counters(), Counters::default());
    link.resume();
    client.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"late");
}

#[tokio::test]
async fn a_cut_ends_old_connections_and_leaves_new_ones_alone() {
    let (link, mut client) = link(Shape::default()).await;
    client.write_all(b"a").await.unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).await.unwrap();
    link.cut();
    assert!(matches!(client.read(&mut byte).await, Ok(0) | Err(_)));
    let mut again = TcpStream::connect(link.address()).await.unwrap();
    again.write_all(b"b").await.unwrap();
    again.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"b");
}

#[test]
fn turns_follow_each_other_and_the_bucket_is_not_deep() {
    let now = Instant::now() + Duration::from_secs(100);
    let takes = Duration::from_millis(3);
    let first = next_turn(None, now, takes);
    assert_eq!((first.begins, first.ends), (now, now + takes));
    let second = next_turn(Some(first.ends), now, takes);
    assert_eq!(second.begins, first.ends);
    let a_little_late = next_turn(Some(first.ends), now + Duration::from_millis(5), takes);
    assert_eq!(a_little_late.begins, first.ends);
    let much_later = next_turn(Some(first.ends), now + Duration::from_secs(9), takes);
    assert!(much_later.ends > now + Duration::from_secs(8));
}

#[test]
fn reads_bandwidths() {
    for (text, bits) in [("200Mbit", 200_000_000), ("1.5gbit/s", 1_500_000_000), ("64kbit", 64_000)] {
        assert_eq!(text.parse(), Ok(Bandwidth(bits)), "{text}");
    }
    for wrong in ["", "200", "Mbit", "0Mbit", "-1Mbit", "1e9bit", "20MB", "1..5Mbit"] {
        assert!(wrong.parse::<Bandwidth>().is_err(), "{wrong}");
    }
    let second = Bandwidth(200_000_000).time_for(25_000_000);
    assert_eq!(second, Duration::from_secs(1));
}
