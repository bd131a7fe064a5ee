//! `sluice policy`: what is loaded, and tools for who writes policies.

mod bench;
mod check;
mod new;
mod pull;
mod push;
mod record;
mod replay;
mod sign;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use policy::record::Plan;
use policy::{Access, Trial};
use proto::{Decision, Facts, LoadedPolicy, PoliciesReply, PoliciesRequest};

use super::Context;
use super::inspect::Policy;
use crate::{exit, render, session};

/// A file of facts, in bytes; a message of facts is no larger.
const FACTS_MAX: u64 = 1024 * 1024;
const ELIGIBILITY: &str = "eligibility";

/// Make, try, show and distribute the plugins that decide which images stream and what is fetched first
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  sluice policy new mine --lang rust               begin one, in Rust, Python, JavaScript or C
  sluice policy new mine --lang c --world prefetch
  sluice policy ls
  sluice policy facts debian:12 > facts.json       what policies are told of an image
  sluice policy check mine.wasm --settings mine.toml
  sluice policy run mine.wasm --facts facts.json
  sluice policy run mine.wasm debian:12
  sluice policy bench mine.wasm
  sluice policy record --output decisions          what a mesh decides from now on
  sluice policy replay decisions --plugin mine.wasm --as mine
  sluice policy push mine.wasm oci://registry.example/team/mine:1.0

How to write one: docs/policies.md")]
pub enum PolicyCommand {
    /// List the policies that are in use
    ///
    /// With --nats, or nats.url in the settings: those of a policy service that runs, and why a newer set is not in use. Without, nobody
    /// can be asked: the set of this command's own settings is loaded as a service would, and shown. Whether a node that runs everything
    /// in one process has taken up a changed file, `sluice events --kind policy-set` says.
    Ls,
    /// Print what policies are told of an image, as JSON
    Facts {
        /// A registry reference, oci:DIR[:TAG] or docker-archive:FILE
        image: String,
    },
    /// Load a plugin as the service would, and say what it is: world, imports, settings, size, what a call takes
    Check(Plugin),
    /// Ask a plugin about an image; exit code 3 when it refuses
    Run(RunArgs),
    Bench(bench::BenchArgs),
    Record(record::RecordArgs),
    Replay(replay::ReplayArgs),
    New(new::NewArgs),
    Push(push::PushArgs),
    Pull(pull::PullArgs),
    Sign(sign::SignArgs),
    Keygen(sign::KeygenArgs),
}

#[derive(Debug, Args)]
pub struct Plugin {
    /// A WebAssembly component: a file, or oci://HOST/REPOSITORY with a tag or a digest
    #[arg(value_name = "PLUGIN")]
    file: PathBuf,
    /// Its settings, as a TOML file: largest-image = 1000000
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    plugin: Plugin,
    /// The image to ask about
    #[arg(required_unless_present = "facts", conflicts_with = "facts")]
    image: Option<String>,
    /// Facts as `sluice policy facts` prints them, instead of an image
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// For a prefetch plugin: plan as if earlier starts had read so many chunks
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    profile: u32,
}

pub async fn run(context: &Context, command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Ls => list(context).await,
        PolicyCommand::Facts { image } => {
            render::json(&facts_of(context, &image).await?)?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Check(plugin) => check::run(context, &plugin).await,
        PolicyCommand::Run(args) => ask(context, args).await,
        PolicyCommand::Bench(args) => bench::run(context, args).await,
        PolicyCommand::Record(args) => Box::pin(record::run(context, args)).await,
        PolicyCommand::Replay(args) => replay::run(context, args).await,
        PolicyCommand::New(args) => new::run(context, args),
        PolicyCommand::Push(args) => push::run(context, args).await,
        PolicyCommand::Pull(args) => pull::run(context, args).await,
        PolicyCommand::Sign(args) => sign::run(context, args).await,
        PolicyCommand::Keygen(args) => sign::keygen(&args),
    }
}

async fn list(context: &Context) -> anyhow::Result<ExitCode> {
    let session = context.judging_session().await?;
    let reply = session.call(PoliciesRequest {}, session::ASK).await.context("list the policies")?;
    match context.global.json {
        true => render::json(&reply)?,
        false => render::line(table(&reply).trim_end())?,
    }
    session.close().await;
    Ok(ExitCode::SUCCESS)
}

fn table(reply: &PoliciesReply) -> String {
    let row = |policy: &LoadedPolicy| {
        let state = match (policy.open_circuit, policy.monitored) {
            (true, _) => "rests: it failed too often",
            (false, true) => "monitored",
            (false, false) => "in use",
        };
        let digest = render::short(&policy.digest).to_owned();
        vec![policy.name.clone(), policy.world.clone(), policy.version.clone(), digest, state.to_owned()]
    };
    let rows = reply.policies.iter().map(row).collect();
    let mut text = render::table(&["policy", "world", "version", "digest", "state"], &[], rows);
    text += match reply.pooled {
        true => "\nTheir instances come from a pool.\n",
        false => {
            "\nTheir instances come from no pool, so each answer takes longer: the service may use too little address space for one.\n"
        }
    };
    if !reply.last_error.is_empty() {
        text += &format!("\nA newer set cannot be used: {}\n", reply.last_error);
    }
    text
}

async fn facts_of(context: &Context, image: &str) -> anyhow::Result<Facts> {
    let request = context.requests()?.inspect(image).await?;
    let session = context.judging_session().await?;
    let reply = session.inspect(request).await.with_context(|| format!("inspect {image}"))?;
    session.close().await;
    reply.facts.context("the fetcher told no facts: it is older than this command")
}

impl Plugin {
    fn settings(&self) -> anyhow::Result<toml::Table> {
        let Some(file) = &self.settings else { return Ok(toml::Table::new()) };
        let reading = || format!("read the settings {}", file.display());
        std::fs::read_to_string(file).with_context(reading)?.parse().with_context(reading)
    }

    /// Its file, where a registry would be in the way.
    fn local(&self) -> anyhow::Result<&Path> {
        match is_remote(&self.file) {
            None => Ok(&self.file),
            Some(name) => bail!("pull it first: sluice policy pull {name} -o FILE"),
        }
    }
}

/// Loads a plugin as the service would; and what it says of itself.
async fn load(context: &Context, plugin: &Plugin) -> anyhow::Result<(Trial, LoadedPolicy)> {
    let (settings, limits) = (plugin.settings()?, context.settings.policy.limits.clone());
    let pulled = match is_remote(&plugin.file) {
        Some(name) => {
            // A password on the command line is for the registry of the image.
            let access = Access { plain_http: context.global.plain_http, ..Access::own() };
            Some(pull::pull(context, &name.parse()?, access).await?)
        }
        None => None,
    };
    let file = plugin.file.clone();
    let trial = blocking(move || match pulled {
        Some(pulled) => Trial::of_pulled(pulled, settings, limits),
        None => Trial::of_plugin(&file, settings, limits),
    });
    let trial = trial.await?;
    let loaded = trial.policies().into_iter().next().context("the plugin was not loaded")?;
    Ok((trial, loaded))
}

/// Runs what compiles or runs guests beside the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("running the plugin")?
}

/// The name of a plugin in a registry, if it is one.
fn is_remote(plugin: &Path) -> Option<&str> {
    plugin.to_str().filter(|name| name.starts_with("oci://"))
}

async fn ask(context: &Context, args: RunArgs) -> anyhow::Result<ExitCode> {
    let facts = match (&args.facts, &args.image) {
        (Some(file), _) => read_facts(file)?,
        (None, Some(image)) => facts_of(context, image).await?,
        (None, None) => bail!("name an image, or a file with --facts"),
    };
    let (trial, loaded) = load(context, &args.plugin).await?;
    if loaded.world != ELIGIBILITY {
        let chunks = args.profile;
        let plan = blocking(move || trial.plan(facts, u32::from(chunks > 0), chunks));
        let plan = plan.await.context("the plugin failed, and has no plan")?;
        render::json(&Plan::from(&plan))?;
        return Ok(ExitCode::SUCCESS);
    }
    let reply = blocking(move || Ok(trial.judge(facts))).await?;
    let refused = reply.decision() == Decision::Refuse;
    for verdict in reply.verdicts {
        let failure = verdict.failure.clone();
        ensure!(failure.is_empty(), "{} ({failure})", verdict.message);
        render::json(&Policy::from(verdict))?;
    }
    Ok(if refused { ExitCode::from(exit::NOT_ELIGIBLE) } else { ExitCode::SUCCESS })
}

fn read_facts(file: &Path) -> anyhow::Result<Facts> {
    let reading = || format!("read the facts {}", file.display());
    let size = std::fs::metadata(file).with_context(reading)?.len();
    ensure!(size <= FACTS_MAX, "{}: it has {size} bytes, more than {FACTS_MAX}", reading());
    serde_json::from_slice(&std::fs::read(file).with_context(reading)?).with_context(reading)
}
