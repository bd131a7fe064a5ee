use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::shape::next_turn;
use super::timer::Timer;
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

/// A link and the threads that it runs on.
struct OnThreads {
    link: Link,
    _carriers: Carriers,
}

impl std::ops::Deref for OnThreads {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

async fn link(shape: Shape) -> (OnThreads, TcpStream) {
    let any = "127.0.0.1:0".parse().unwrap();
    let carriers = Carriers::new().unwrap();
    let link = Link::start(&carriers, Nic::new(shape), any).unwrap();
    link.lead_to(echo().await);
    let client = TcpStream::connect(link.address()).await.unwrap();
    (OnThreads { link, _carriers: carriers }, client)
}

fn shape(rtt: &str, bandwidth: Option<&str>) -> Shape {
    let bandwidth = bandwidth.map(|text| text.parse().unwrap());
    Shape { rtt: humantime::parse_duration(rtt).unwrap(), bandwidth }
}

/// Waits by the clock that the schedule goes by, which stands still as long as anybody has work.
struct ByTheSchedule;

impl Timer for ByTheSchedule {
    async fn until(&mut self, moment: Instant) -> std::io::Result<()> {
        tokio::time::sleep_until(moment).await;
        Ok(())
    }
}

/// A link's one direction, from end to end.
fn way(nic: &Nic) -> (tokio::io::DuplexStream, tokio::io::DuplexStream) {
    const BUFFER: usize = 64 * 1024;
    let (source, from) = tokio::io::duplex(BUFFER);
    let (to, sink) = tokio::io::duplex(BUFFER);
    let (opened, lane) = (Instant::now(), nic.lane(Direction::Down));
    let (control, watched) = watch::channel(Control::default());
    tokio::spawn(async move {
        let carried = one_way(from, to, lane, opened, ByTheSchedule, watched).await;
        drop(control);
        carried
    });
    (source, sink)
}

/// How long each of `connections` takes for so many bytes, all at the same time.
async fn takes(nic: &Nic, length: usize, connections: usize) -> Vec<Duration> {
    // Timers that are set for now ring at the next full millisecond.
    tokio::time::advance(Duration::from_micros(300)).await;
    let began = Instant::now();
    let all = (0..connections).map(|_| {
        let (mut source, mut sink) = way(nic);
        tokio::spawn(async move { source.write_all(&vec![7; length]).await });
        async move {
            let mut received = Vec::new();
            sink.read_to_end(&mut received).await.unwrap();
            assert_eq!(received.len(), length);
            began.elapsed()
        }
    });
    futures::future::join_all(all).await
}

/// The schedule's clock is a millisecond coarse.
fn assert_close(took: Duration, claimed: Duration, what: &str) {
    assert!(took >= claimed, "{what}: took {took:?}, faster than {claimed:?}");
    let most = claimed + claimed / 100 + Duration::from_millis(2);
    assert!(took <= most, "{what}: took {took:?}, slower than {claimed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_link_takes_as_long_as_it_claims() {
    let settings = [
        ("0ms", None, 50_000_000),
        ("1ms", None, 50_000_000),
        ("20ms", None, 50_000_000),
        ("0ms", Some("10Gbit"), 50_000_000),
        ("1ms", Some("10Gbit"), 50_000_000),
        ("1ms", Some("1Gbit"), 20_000_000),
        ("20ms", Some("200Mbit"), 5_000_000),
        ("0ms", Some("3Mbit"), 300_000),
        ("100ms", Some("64kbit"), 20_000),
    ];
    for (rtt, bandwidth, length) in settings {
        let shape = shape(rtt, bandwidth);
        let moving = shape.bandwidth.map_or(Duration::ZERO, |bandwidth| bandwidth.time_for(length as u64));
        let took = takes(&Nic::new(shape), length, 1).await;
        assert_close(took[0], moving + shape.rtt / 2, &format!("{rtt}, {bandwidth:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn connections_share_what_a_link_has() {
    let shape = shape("20ms", Some("200Mbit"));
    let nic = Nic::new(shape);
    let claimed = Bandwidth(200_000_000).time_for(4 * 1_000_000) + shape.rtt / 2;
    let took = takes(&nic, 1_000_000, 4).await;
    assert_close(*took.iter().max().unwrap(), claimed, "the last of them");
    assert!(*took.iter().min().unwrap() > claimed * 9 / 10, "one was preferred: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_saves_nothing_up() {
    let nic = Nic::new(shape("0ms", Some("8Mbit")));
    let (mut source, mut sink) = way(&nic);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        source.write_all(&[7; 10_000]).await.unwrap();
        sink.read_exact(&mut [0; 10_000]).await.unwrap();
        assert_close(began.elapsed(), Duration::from_millis(10), "10 kB after a second");
    }
}

/// By the real clock no more can be said without knowing how busy the machine is.
#[tokio::test]
async fn no_byte_is_early() {
    for (rtt, bandwidth, length) in
        [("0ms", None, 8_000_000), ("1ms", None, 8_000_000), ("2ms", Some("400Mbit"), 2_000_000)]
    {
        let shape = shape(rtt, bandwidth);
        let began = Instant::now();
        let (link, client) = link(shape).await;
        let (mut read, mut write) = client.into_split();
        let writing = tokio::spawn(async move {
            write.write_all(&pattern(length)).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        assert!(received == pattern(length), "{rtt}, {bandwidth:?}");
        // A round trip for the handshake, and one there and back.
        let moving = shape.bandwidth.map_or(Duration::ZERO, |bandwidth| bandwidth.time_for(length as u64));
        assert!(began.elapsed() >= moving + 2 * shape.rtt, "{rtt}, {bandwidth:?}");
        assert_eq!(link.counters(), Counters { up: length as u64, down: length as u64 });
    }
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
fn turns_follow_each_other_and_none_begins_before_its_bytes_are_there() {
    let now = Instant::now() + Duration::from_secs(100);
    let takes = Duration::from_millis(3);
    let first = next_turn(None, now, takes);
    assert_eq!((first.begins, first.ends), (now, now + takes));
    let second = next_turn(Some(first.ends), now, takes);
    assert_eq!(second.begins, first.ends);
    let late = next_turn(Some(first.ends), now + Duration::from_secs(9), takes);
    assert_eq!(late.begins, now + Duration::from_secs(9));
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
