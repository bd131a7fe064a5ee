//! The commands, one file each, and what they share.

pub mod check;
pub mod compare;
pub mod completions;
pub mod config;
pub mod enroll;
pub mod events;
pub mod evict;
pub mod gc;
pub mod health;
pub mod import;
pub mod inspect;
pub mod install;
pub mod keys;
pub mod layers;
pub mod link;
pub mod ls;
pub mod man;
pub mod mount;
pub mod policy;
pub mod project;
pub mod quota;
pub mod reserve;
pub mod revoke;
pub mod rm;
pub mod run;
pub mod serve;
pub mod status;
pub mod stop;
pub mod take_away;
pub mod umount;
pub mod uninstall;

use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::args::{Cli, Command, Global};
use crate::node::Node;
use crate::progress::Progress;
use crate::request::Requests;
use crate::session::Session;
use crate::settings::Settings;

/// What every command starts from.
#[derive(Debug)]
pub struct Context {
    pub global: Global,
    pub settings: Settings,
}

impl Context {
    pub fn requests(&self) -> anyhow::Result<Requests> {
        Requests::new(&self.global, &self.settings)
    }

    pub fn progress(&self) -> Progress {
        Progress::new(self.global.quiet)
    }

    /// A session for questions about what the store holds; none where there is no store.
    pub async fn session(&self) -> anyhow::Result<Option<Session>> {
        Session::open_existing(&self.settings).await
    }

    /// A session for questions about images, which policies judge.
    pub async fn judging_session(&self) -> anyhow::Result<Session> {
        Session::open(&self.settings).await
    }

    pub async fn node(&self, progress: &Progress) -> anyhow::Result<Node> {
        Node::ensure(&self.global, &self.settings, progress).await
    }

    /// The frontend that runs; none is started for a question.
    pub async fn running_node(&self) -> anyhow::Result<Node> {
        let node = Node::connect(self.settings.node_socket()).await;
        node.context("no node runs: the first `sluice mount` or `sluice run` starts one, which ends when it has nothing to do")
    }
}

pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    // These need no settings, and must work where the settings are broken.
    match command {
        Command::Completions(args) => return completions::run(&args),
        Command::Man(args) => return man::run(&args),
        Command::Health(args) => return health::run(&args),
        Command::Config(command) => return config::run(&global, command),
        Command::Link(args) => return link::run(args).await,
        Command::Keys(command) => return Box::pin(keys::run(&global, command)).await,
        Command::Reserve(args) => return reserve::run(&global, &args),
        Command::Install(args) => return Box::pin(install::run(&global, *args)).await,
        Command::Uninstall(args) => return Box::pin(uninstall::run(&global, args)).await,
        _ => {}
    }
    let mut settings = Settings::load(&global)?;
    // What policy authors write is for others, too; and the containerd of a comparison makes its folders as any does.
    if !matches!(command, Command::Policy(_) | Command::Compare(_)) {
        lifecycle::private::restrict_umask();
    }
    if !matches!(command, Command::Serve(_)) {
        settings.lifecycle.log = log_for(&global, settings.lifecycle.log);
        lifecycle::logs::init(&settings.lifecycle.log)?;
    }
    let context = Context { global, settings };
    match command {
        Command::Import(args) => import::run(&context, args).await,
        Command::Mount(args) => Box::pin(mount::run(&context, args)).await,
        Command::Umount(args) => umount::run(&context, args).await,
        Command::Run(args) => Box::pin(run::run(&context, *args)).await,
        Command::Stop(args) => stop::run(&context, args).await,
        Command::TakeAway(args) => take_away::run(&context, args).await,
        Command::Inspect(args) => inspect::run(&context, args).await,
        Command::Compare(args) => Box::pin(compare::run(&context, *args)).await,
        Command::Ls => ls::run(&context).await,
        Command::Rm(args) => rm::run(&context, args).await,
        Command::Gc(args) => gc::run(&context, args).await,
        Command::Status(args) => status::run(&context, args).await,
        Command::Events(args) => events::run(&context, args).await,
        Command::Evict(args) => evict::run(&context, args).await,
        Command::Check(args) => Box::pin(check::run(&context, args)).await,
        Command::Layers(args) => Box::pin(layers::run(&context, args)).await,
        Command::Enroll(args) => enroll::run(&context, args).await,
        Command::Revoke(command) => revoke::run(&context, command).await,
        Command::Policy(command) => policy::run(&context, command).await,
        Command::Project(args) => project::run(&context, args).await,
        Command::Quota(command) => quota::run(&context, command).await,
        Command::Serve(args) => Box::pin(serve::run(context, args)).await,
        Command::Completions(_)
        | Command::Man(_)
        | Command::Health(_)
        | Command::Config(_)
        | Command::Keys(_)
        | Command::Link(_)
        | Command::Reserve(_)
        | Command::Install(_)
        | Command::Uninstall(_) => Ok(ExitCode::SUCCESS),
    }
}

/// What to say where [`Context::session`] finds no store.
fn no_store(context: &Context) -> String {
    let store = &context.settings.store.url;
    format!(
        "there is no store at {store}: nothing was imported on this machine, or --state or --store is another"
    )
}

/// A command says what it does itself: logs are for what is out of the ordinary, unless asked for.
fn log_for(global: &Global, mut log: lifecycle::logs::Config) -> lifecycle::logs::Config {
    // Of services: what a command says is for who typed it.
    log.file = None;
    log.filter = match (global.quiet, global.verbose) {
        (true, _) => "error".to_owned(),
        (false, 0) => "warn".to_owned(),
        (false, 1) => "info".to_owned(),
        (false, _) => "debug".to_owned(),
    };
    log
}

/// Mounting takes CAP_SYS_ADMIN; said before anything was done, not after.
pub fn require_root(purpose: &str) -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("{purpose}: root is needed to mount file systems; run this with sudo, or in a privileged container")
}
