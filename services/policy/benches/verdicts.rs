//! How fast verdicts are: `cargo bench -p policy` prints a table.

use std::time::{Duration, Instant};

use bus::Bus;
use policy::{Config, Policies, PolicyConfig, SetConfig};
use proto::{Facts, ImageFacts, JudgeReply, JudgeRequest, LayerFacts};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CALLS: usize = 20_000;
const AT_ONCE: usize = 4;
const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!(
        "{:<24} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "", "guest p50", "guest p99", "bus p50", "bus p99", "verdicts/s"
    );
    let five = ["schema-version", "encrypted-layers", "layer-shape", "size-limits", "registry-region"];
    for (name, policies) in [("one policy", &five[..1]), ("five policies", &five[..])] {
        let began = Instant::now();
        let (bus, _policies) = start(policies).await?;
        let loaded = began.elapsed();
        let (mut guest, mut bus_times) = (Vec::new(), Vec::new());
        for _ in 0..CALLS / 4 {
            let asked = Instant::now();
            let reply = judge(&bus).await?;
            bus_times.push(asked.elapsed());
            guest
                .push(Duration::from_micros(reply.verdicts.iter().map(|verdict| verdict.microseconds).sum()));
        }
        let rate = rate(&bus).await?;
        let row = [
            quantile(&mut guest, 50),
            quantile(&mut guest, 99),
            quantile(&mut bus_times, 50),
            quantile(&mut bus_times, 99),
        ];
        let row = row.map(|time| format!("{time:>10.0?}")).join(" ");
        println!("{name:<24} {row} {rate:>12.0}");
        println!("{:<24} {loaded:>10.0?}", "  loaded in");
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    print!(
        "{}",
        status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    );
    Ok(())
}

async fn start(policies: &[&str]) -> anyhow::Result<(Bus, Policies)> {
    let eligibility = policies.iter().map(|name| PolicyConfig::builtin(name)).collect();
    let config = Config { set: SetConfig { eligibility, ..SetConfig::default() }, ..Config::default() };
    let bus = Bus::in_process();
    let policies =
        Policies::start(config, bus.clone(), &TaskTracker::new(), CancellationToken::new()).await?;
    Ok((bus, policies))
}

async fn judge(bus: &Bus) -> anyhow::Result<JudgeReply> {
    let layer = |number: u64| LayerFacts {
        digest: format!("sha256:{number:064}"),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size: 1_000_000 * number,
        ..LayerFacts::default()
    };
    let layers = (1..=12).map(layer).collect();
    let image =
        ImageFacts { reference: "app:1".to_owned(), schema_version: 2, layers, ..ImageFacts::default() };
    let facts = Facts { image: Some(image), ..Facts::default() };
    Ok(bus.call(JudgeRequest { facts: Some(facts) }, DEADLINE).await?)
}

/// Verdicts a second, with several questions at a time.
async fn rate(bus: &Bus) -> anyhow::Result<f64> {
    let began = Instant::now();
    let tasks = (0..AT_ONCE).map(|_| {
        let bus = bus.clone();
        tokio::spawn(async move {
            for _ in 0..CALLS / AT_ONCE {
                judge(&bus).await?;
            }
            anyhow::Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(CALLS as f64 / began.elapsed().as_secs_f64())
}

fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() - 1) * percent / 100]
}
