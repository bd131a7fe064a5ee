//! The admin server as a probe and a scraper see it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use lifecycle::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn answers_probes_and_scrapers() {
    let config = Config { admin: Some("127.0.0.1:0".parse().unwrap()), ..Config::default() };
    let service = lifecycle::start("test", &config).await.unwrap();
    let address = service.admin.unwrap();
    let (ready, shutdown) = (service.ready.clone(), service.shutdown.clone());

    assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
    let starting = get(address, "/readyz").await;
    assert!(starting.starts_with("HTTP/1.1 503") && starting.contains("waiting for start"), "{starting}");
    assert!(get(address, "/other").await.starts_with("HTTP/1.1 404"));

    let running = tokio::spawn(service.run());
    while ready.check().is_err() {
        tokio::task::yield_now().await;
    }
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));

    metrics::counter!("test_things_total", "kind" => "odd").increment(3);
    metrics::histogram!("test_duration_seconds").record(0.02);
    let scraped = get(address, "/metrics").await;
    assert!(scraped.contains("test_things_total{kind=\"odd\"} 3"), "{scraped}");
    assert!(scraped.contains("test_duration_seconds_bucket{le=\"0.025\"} 1"), "{scraped}");

    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_taken_address_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = Config { admin: Some(address), ..Config::default() };
    let error = lifecycle::start("test", &config).await.unwrap_err();
    assert!(format!("{error:#}").contains(&address.to_string()), "{error:#}");
}
