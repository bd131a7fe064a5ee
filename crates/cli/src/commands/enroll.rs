//! `sluice enroll`: a node gets its identity.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use identity::client::PodToken;
use identity::{Own, Token, client};

use super::Context;
use crate::render;

/// A token is a line.
const TOKEN_MAX: u64 = 4 * 1024;

/// Get this node's identity, for a token that `sluice keys token` made, or for that of a pod
///
/// The node's keys are made here and never leave. A node that has an identity which still counts renews it instead, so that this can
/// stand before each start of the frontend; the frontend then renews by itself.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice enroll https://identity.example:7470 --token-file /run/secrets/token
  frontend --config /etc/sluice/node/frontend.toml
  sluice enroll https://identity.sluice:7470 --ca-file /etc/sluice/ca.pem \\
    --kubernetes-token-file /var/run/secrets/sluice/token          in a pod, whose node it then is")]
pub struct EnrollArgs {
    /// Where the identity service answers
    address: String,
    /// A file that holds the token; `-`: standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    token_file: PathBuf,
    /// A pod's projected token, of the audience that the identity service expects. The node is the one that Kubernetes says the pod is on
    #[arg(long, value_name = "FILE", conflicts_with = "token_file", requires = "ca_file")]
    kubernetes_token_file: Option<PathBuf>,
    /// The certificate of the mesh's authority (ca.pem): a pod's token does not say whom to believe
    #[arg(long, value_name = "FILE", requires = "kubernetes_token_file")]
    ca_file: Option<PathBuf>,
    /// Where this node's identity is kept
    #[arg(long, value_name = "DIR", default_value = "/etc/sluice/node")]
    into: PathBuf,
    /// The node's name [default: frontend.node; with a pod's token what that says]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Enroll anew, also when there is an identity that counts
    #[arg(long)]
    again: bool,
}

pub async fn run(context: &Context, args: EnrollArgs) -> anyhow::Result<ExitCode> {
    let pod = args.kubernetes_token_file.as_deref().zip(args.ca_file.as_deref());
    let pod = pod.map(|(file, ca)| pod_token(file, ca)).transpose()?;
    let node = match (&args.name, &pod) {
        (Some(name), _) => name.clone(),
        (None, Some(_)) => String::new(),
        (None, None) => context.settings.frontend.node.clone(),
    };
    let own = Own::open(&args.into)?;
    let before = Own::given(&args.into)?;
    let of_node = |given: &identity::Given| node.is_empty() || given.node == node;
    let counts = before.filter(|given| of_node(given) && given.expires_unix > render::now_unix());
    let given = match (counts, pod) {
        (Some(_), _) if !args.again => client::renew(&args.into, &args.address).await,
        (_, Some(pod)) => client::enroll_pod(&own, &args.address, &pod, &node).await,
        _ => client::enroll(&own, &args.address, &token(&args.token_file)?, &node).await,
    }?;
    match context.global.json {
        true => render::json(&serde_json::json!({
            "node": given.node,
            "projects": given.projects,
            "expires_unix": given.expires_unix,
            "settings": own.settings(),
        }))?,
        false => render::line(&format!(
            "this is node {} of {}; frontend --config {}",
            given.node,
            given.projects.join(", "),
            own.settings().display()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pod_token(file: &Path, ca: &Path) -> anyhow::Result<PodToken> {
    Ok(PodToken { file: file.to_owned(), authority: client::authority_of(ca)? })
}

fn token(file: &Path) -> anyhow::Result<Token> {
    let mut text = String::new();
    let reading = || format!("read the token from {}", file.display());
    match file.to_str() {
        Some("-") => std::io::stdin().take(TOKEN_MAX).read_to_string(&mut text),
        _ => std::fs::File::open(file).with_context(reading)?.take(TOKEN_MAX).read_to_string(&mut text),
    }
    .with_context(reading)?;
    match text.parse() {
        Ok(token) => Ok(token),
        Err(_) => bail!("{}: that is no token: `sluice keys token` makes one", reading()),
    }
}
