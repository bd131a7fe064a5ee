//! What turns the files into a running node: systemctl, and the images that the switch would leave unstartable.

use std::path::Path;

use super::client::Client;
use super::images;
use super::report::Report;
use super::systemd;

/// Runs one systemctl command, or says that it would.
pub async fn systemctl(words: &[&str], dry_run: bool, report: &mut Report) -> anyhow::Result<()> {
    if !dry_run {
        systemd::run(words).await?;
    }
    report.command(&systemd::line(words))
}

/// Takes the images off containerd's list that cannot start under `snapshotter`.
pub async fn forget_images(
    client: &mut Client,
    snapshotter: &str,
    dry_run: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let findings = images::find(client, snapshotter).await?;
    let all = findings.len();
    let gone: Vec<_> = findings.into_iter().filter(|finding| finding.verdict.cannot_start()).collect();
    for (number, finding) in gone.iter().enumerate() {
        report.image(finding)?;
        for (name_number, name) in finding.names.iter().enumerate() {
            // With the very last name goes what was needed for these images alone.
            let last = number + 1 == gone.len() && name_number + 1 == finding.names.len();
            if !dry_run {
                client.forget(name, last).await?;
            }
        }
    }
    let left = all - gone.len();
    report.say(&match gone.len() {
        0 => format!("all {all} images can start under {snapshotter}"),
        _ => format!("pulled again when next needed; {left} other images stay"),
    })
}

/// Restarts containerd and waits until it answers.
pub async fn restart_containerd(
    socket: &Path,
    namespace: &'static str,
    snapshotter: &str,
    report: &mut Report,
) -> anyhow::Result<Client> {
    systemctl(&["restart", systemd::CONTAINERD], false, report).await?;
    Client::wait(socket, namespace, snapshotter).await
}
