//! `sluice keys`: the identities that hold a mesh together.

mod describe;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bus::NatsConfig;
use clap::{Args, Subcommand};
use identity::{Entry, Kind, Options, Set};
use serde::Serialize;

use crate::args::Global;
use crate::render;

/// How long a token counts, unless it is said: until somebody has walked over to the machine.
const TOKEN_LIFE: &str = "1h";
/// `init --keep` renews what counts no longer than this.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Make, renew and revoke the identities of a mesh
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  sluice keys init /etc/sluice/mesh --host nats.example --url tls://nats.example:4222
  sluice keys token /etc/sluice/mesh --for-node worker-1        what `sluice enroll` shows on that node
  sluice keys show /etc/sluice/mesh
  sluice keys revoke /etc/sluice/mesh worker-1 --push

docs/access.md goes from `keys init` to a mesh that runs.")]
pub enum KeysCommand {
    Init(InitArgs),
    Rotate(RotateArgs),
    Add(AddArgs),
    Token(TokenArgs),
    Revoke(RevokeArgs),
    Show(ShowArgs),
}

/// Make all keys of a new mesh: authority, NATS users, certificates, settings for each service
#[derive(Debug, Args)]
pub struct InitArgs {
    /// A folder that is made; whoever can read it is the mesh's owner
    dir: PathBuf,
    /// The mesh's name
    #[arg(long, default_value = "sluice")]
    name: String,
    /// A name or an address under which NATS and services are reached from elsewhere; may be repeated
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// Where services and nodes find NATS; --nats of other commands
    #[arg(long = "url", value_name = "URL", default_value = "tls://127.0.0.1:4222")]
    nats_url: String,
    /// Where NATS listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4222")]
    listen: String,
    /// Where the folder will stand on the machines that use it [default: where it is made]
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
    /// Make the keys of this machine's own node as well: serve.toml then serves it beside the services
    #[arg(long, value_name = "NAME")]
    for_node: Option<String>,
    /// Projects that this node may speak for
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "default",
        requires = "for_node"
    )]
    projects: Vec<String>,
    /// Keep what the folder holds already, and renew what ends within a month: for what runs at each start
    #[arg(long)]
    keep: bool,
}

/// Renew certificates and NATS users, of one identity or of all, and what roles may do in this version
#[derive(Debug, Args)]
pub struct RotateArgs {
    dir: PathBuf,
    /// As `sluice keys show` names it [default: all]
    name: Option<String>,
    /// Tell the running NATS servers
    #[arg(long)]
    push: bool,
}

/// Add a person, or a node whose keys are made here
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("who").required(true))]
pub struct AddArgs {
    dir: PathBuf,
    /// Somebody at the command line
    #[arg(long, value_name = "NAME", group = "who")]
    operator: Option<String>,
    /// A node. Better: `sluice keys token`, with which a node makes its own key
    #[arg(long, value_name = "NAME", group = "who")]
    for_node: Option<String>,
    /// Projects that a node may speak for
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "default")]
    projects: Vec<String>,
}

/// Make a token that lets a node in, once
#[derive(Debug, Args)]
pub struct TokenArgs {
    dir: PathBuf,
    /// The node's name; with a `*` at its end any that begins so
    #[arg(long, value_name = "NAME")]
    for_node: String,
    /// Projects that the node may speak for
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "default")]
    projects: Vec<String>,
    /// How long it counts
    #[arg(long, value_name = "TIME", default_value = TOKEN_LIFE, value_parser = humantime::parse_duration)]
    life: Duration,
    /// How many nodes it lets in: for a group that grows by itself
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    uses: u32,
    /// Write it to this file, of mode 0600, instead of printing it
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
}

/// From now on somebody is nobody: for NATS, and for the identity service
#[derive(Debug, Args)]
pub struct RevokeArgs {
    dir: PathBuf,
    /// As `sluice keys show` names it
    name: String,
    /// Tell the running NATS servers, which then close its connections
    #[arg(long)]
    push: bool,
}

/// List who has an identity, and until when
#[derive(Debug, Args)]
pub struct ShowArgs {
    dir: PathBuf,
}

/// `--json` of what changes something.
#[derive(Debug, Serialize)]
struct Done {
    folder: PathBuf,
    names: Vec<String>,
}

pub async fn run(global: &Global, command: KeysCommand) -> anyhow::Result<ExitCode> {
    lifecycle::private::restrict_umask();
    match command {
        KeysCommand::Init(args) => init(global, args)?,
        KeysCommand::Rotate(args) => {
            let mut set = Set::open(&args.dir)?;
            let names = set.rotate(args.name.as_deref()).context("renew the mesh's keys")?;
            done(global, &set, set.folder(), names, "renewed")?;
            tell_servers(&set, args.push).await?;
        }
        KeysCommand::Add(args) => add(global, args)?,
        KeysCommand::Token(args) => token(global, &args)?,
        KeysCommand::Revoke(args) => {
            let mut set = Set::open(&args.dir)?;
            set.revoke(&args.name).with_context(|| format!("revoke {}", args.name))?;
            done(global, &set, set.folder(), vec![args.name], "revoked")?;
            tell_servers(&set, args.push).await?;
        }
        KeysCommand::Show(args) => describe::show(global, &Set::open(&args.dir)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn init(global: &Global, args: InitArgs) -> anyhow::Result<()> {
    if args.keep && Set::is_at(&args.dir) {
        return keep(global, Set::open(&args.dir)?);
    }
    let options = Options {
        name: args.name,
        hosts: args.hosts,
        nats_url: args.nats_url,
        listen: args.listen,
        at: args.at,
    };
    let mut set = Set::init(&args.dir, &options).context("make the mesh's keys")?;
    if let Some(node) = &args.for_node {
        set.serve_node(node, &args.projects).with_context(|| format!("add {node}"))?;
    }
    describe::made(global, &set)
}

/// What would end soon is renewed: who starts a mesh at each boot never looks.
fn keep(global: &Global, mut set: Set) -> anyhow::Result<()> {
    let soon = render::now_unix() + RENEW_BEFORE.as_secs();
    let ends = |entry: &Entry| entry.kind == Kind::Service && entry.expires_unix < soon;
    let (names, what) = match set.entries()?.iter().any(ends) {
        true => (set.rotate(None).context("renew the mesh's keys")?, "renewed"),
        false => (vec![set.name().to_owned()], "kept the keys of"),
    };
    done(global, &set, set.folder(), names, what)
}

fn add(global: &Global, args: AddArgs) -> anyhow::Result<()> {
    let mut set = Set::open(&args.dir)?;
    let (name, folder) = match (&args.operator, &args.for_node) {
        (Some(name), _) => (name, set.add_operator(name)),
        (None, Some(name)) => (name, set.add_node(name, &args.projects)),
        (None, None) => anyhow::bail!("--operator or --for-node expected"),
    };
    let folder = folder.with_context(|| format!("add {name}"))?;
    done(global, &set, &folder, vec![name.clone()], "added")
}

fn token(global: &Global, args: &TokenArgs) -> anyhow::Result<()> {
    let set = Set::open(&args.dir)?;
    let authority = set.authority()?.fingerprint();
    let made = set.tokens().make(&args.for_node, &args.projects, args.life, args.uses, authority);
    let (token, file) = made.context("make a token")?;
    if let Some(path) = &args.into {
        identity::write_secret(path, format!("{token}\n"))?;
        return done(global, &set, path, vec![file.node], "made a token for");
    }
    match global.json {
        true => render::json(&serde_json::json!({
            "token": token.to_string(),
            "node": file.node,
            "projects": file.projects,
            "expires_unix": file.expires_unix,
            "uses": file.uses,
        })),
        // Alone on standard output, so that it can be handed on.
        false => render::line(&token.to_string()),
    }
}

fn done(global: &Global, set: &Set, folder: &Path, names: Vec<String>, what: &str) -> anyhow::Result<()> {
    if global.json {
        return render::json(&Done { folder: folder.to_owned(), names });
    }
    let place = if folder == set.folder() { String::new() } else { format!(": {}", folder.display()) };
    names.iter().try_for_each(|name| render::line(&format!("{what} {name}{place}")))
}

/// Servers that run know the account as it was; those that start read the configuration.
async fn tell_servers(set: &Set, push: bool) -> anyhow::Result<()> {
    if !push {
        render::say(
            "NATS servers that run know it after --push, or once they have read their configuration again",
        );
        return Ok(());
    }
    let (jwt, credentials) = set.account_jwt()?;
    let (url, ca, certificate, key) = set.nats();
    let config = NatsConfig {
        url,
        name: "sluice keys".to_owned(),
        credentials_file: Some(credentials),
        ca_file: Some(ca),
        certificate_file: Some(certificate),
        key_file: Some(key),
        ..NatsConfig::default()
    };
    bus::update_account(&config, jwt).await.context("tell the NATS servers")
}
