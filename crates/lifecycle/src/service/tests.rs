use std::io;

use super::*;

async fn started(config: Config) -> Service {
    start("test", &config).await.unwrap()
}

#[tokio::test]
async fn drains_its_tasks_and_ends_well() {
    let service = started(Config::default()).await;
    let (shutdown, finished) = (service.shutdown.clone(), CancellationToken::new());
    service.essential("worker", {
        let (shutdown, finished) = (shutdown.clone(), finished.clone());
        async move {
            shutdown.cancelled().await;
            tokio::task::yield_now().await;
            finished.cancel();
            Ok::<_, anyhow::Error>(())
        }
    });
    let running = tokio::spawn(service.run());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(finished.is_cancelled());
}

#[tokio::test]
async fn an_essential_task_takes_the_service_with_it() {
    let service = started(Config::default()).await;
    let shutdown = service.shutdown.clone();
    service.essential("listener", async { Err(io::Error::other("the port is taken")) });
    let error = service.run().await.unwrap_err();
    assert_eq!(format!("{error:#}"), "listener failed: the port is taken");
    assert!(shutdown.is_cancelled());
}

#[tokio::test]
async fn an_essential_task_may_not_end_or_panic_either() {
    let service = started(Config::default()).await;
    service.essential("listener", async { Ok::<_, anyhow::Error>(()) });
    assert_eq!(service.run().await.unwrap_err().to_string(), "listener ended");

    async fn broken() -> anyhow::Result<()> {
        panic!("a bug");
    }
    let service = started(Config::default()).await;
    service.essential("listener", broken());
    assert!(service.run().await.unwrap_err().to_string().starts_with("listener panicked"));
}

#[tokio::test]
async fn names_who_keeps_it_from_ending() {
    let service = started(Config { drain_timeout: Duration::from_millis(50), ..Config::default() }).await;
    service.spawn("slow import", std::future::pending());
    service.spawn("quick one", async {});
    service.tasks.spawn(std::future::pending::<()>());
    service.shutdown.cancel();
    let error = service.run().await.unwrap_err().to_string();
    assert!(error.ends_with("still running: slow import, 1 unnamed"), "{error}");
}

#[test]
fn assignments_name_a_key() {
    assert_eq!(assignment("cache.memory=1=2").unwrap(), ("cache.memory".to_owned(), "1=2".to_owned()));
    assert!(assignment("cache.memory").is_err());
    assert!(assignment("=1").is_err());
}
