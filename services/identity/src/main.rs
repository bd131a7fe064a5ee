//! The identity service as a process of its own.

use identity_service::Settings;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let about = "Gives nodes what proves who they are";
    let Some(settings) = lifecycle::command_line::load::<Settings>("identity", about)? else {
        return Ok(());
    };
    let service = lifecycle::start("identity", &settings.lifecycle).await?;
    let needs = checks::Needs { tls: vec![settings.tls.clone()], ..checks::Needs::default() };
    checks::keep_looking(&service, needs);
    let (tls, shutdown) = (settings.tls.open()?, service.shutdown.clone());
    identity_service::start(settings.identity, tls, &service.tasks, shutdown).await?;
    service.run().await
}
