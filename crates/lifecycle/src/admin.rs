//! The admin server: `/livez`, `/readyz` and `/metrics` by HTTP, for probes and scrapers.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Readiness;

/// What the admin server shows.
#[derive(Clone)]
pub struct Admin {
    pub metrics: PrometheusHandle,
    pub ready: Readiness,
}

/// Serves at `address` until `shutdown`; returns where, as port 0 means any.
pub async fn serve(
    address: SocketAddr,
    admin: Admin,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<SocketAddr> {
    let binding = || format!("binding the admin server to {address}");
    let listener = TcpListener::bind(address).await.with_context(binding)?;
    let bound = listener.local_addr().with_context(binding)?;
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    tasks.spawn(async move {
        tokio::select! {
            result = axum::serve(listener, router) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the admin server ended");
                }
            }
            () = shutdown.cancelled() => {}
        }
    });
    Ok(bound)
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let (failed, notes) = (admin.ready.failed(), admin.ready.notes());
    let status = if failed.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ready = failed.is_empty().then(|| "ready".to_owned());
    let notes = notes.into_iter().map(|note| format!("warning: {note}"));
    (status, ready.into_iter().chain(failed).chain(notes).map(|line| line + "\n").collect())
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Admin").field("ready", &self.ready).finish_non_exhaustive()
    }
}
