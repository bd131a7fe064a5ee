//! The switch of each project: whether its images stream at all.
//!
//! Off is `PERMISSION_DENIED` for whoever asks for an image, and so an ordinary pull. What streams already goes on until the grants
//! that were given end: none is renewed, and what is given for a part of an image ends with the grant for the whole.
//!
//! | says | of one project | of all others |
//! |---|---|---|
//! | [`live`]: `sluice project` | first | fourth |
//! | the file of the configuration | second | fifth |
//! | the configuration | third | last |

mod file;
mod live;

use std::collections::BTreeSet;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bus::{Answer, Answering, Bus};
use lifecycle::Probe;
use names::Project;
use proto::switch_request::To;
use proto::{ProjectSwitch, ProjectsReply, ProjectsRequest, Refusal, SwitchReply, SwitchRequest, refusal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::config::Projects as Config;
use file::{File, Said};
use live::Live;

/// In the details of the refusal: what is switched, and how.
const SWITCH: &str = "streaming";
const OFF: &str = "off";
/// How long what begins waits for the table of live switches.
const FIRST_MAX: Duration = Duration::from_secs(5);
/// Questions of operators.
const QUESTIONS_IN_FLIGHT: usize = 16;
/// Projects that one answer lists.
const SHOWN_MAX: usize = 10_000;
const UNKNOWN: &str = "what was switched live was not read so far: the configuration holds until it is";

/// Whether what was switched live is known.
pub const SWITCHES: Probe = Probe {
    what: "live switches",
    gauge: "sluice_fetcher_switches_known",
    every: Duration::from_secs(1),
    within: Duration::from_secs(5),
};

#[derive(Debug)]
pub(crate) struct Projects {
    config: Config,
    file: Option<File>,
    live: Live,
}

/// Who says that a project's images stream, or do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Live,
    File,
    Configuration,
    Default,
}

impl Projects {
    /// Nobody follows what is switched live.
    pub(crate) fn new(config: Config, bus: &Bus) -> Projects {
        let file = config.file.clone().map(File::new);
        let live =
            config.kept.clone().map_or_else(|| Live::in_table(bus), |kept| Live::File(File::new(kept)));
        Projects { config, file, live }
    }

    /// Follows what is switched live, until `shutdown`. A mesh's JetStream may be away at the start: then what the configuration says
    /// holds until it is back, as else nothing would stream for want of a table that is mostly empty.
    pub(crate) async fn follow(
        config: Config,
        bus: &Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Arc<Projects> {
        let projects = Arc::new(Projects::new(config, bus));
        if let Live::Table(table, followed) = &projects.live {
            let following = followed.clone().follow(table.watch());
            tasks.spawn(async move { shutdown.run_until_cancelled(following).await });
            if tokio::time::timeout(FIRST_MAX, followed.settled()).await.is_err() {
                tracing::warn!("{UNKNOWN}");
            }
        }
        projects
    }

    /// Answers operators.
    pub(crate) async fn answer(self: &Arc<Self>, bus: &Bus) -> anyhow::Result<Vec<Answering>> {
        let at_most = || Answer { in_flight: QUESTIONS_IN_FLIGHT, instance: None };
        Ok(vec![
            bus.serve(self, at_most(), Projects::show).await?,
            bus.serve(self, at_most(), Projects::switch).await?,
        ])
    }

    /// Whether what was switched live is known.
    pub(crate) fn probe(self: &Arc<Self>) -> impl Fn() -> Ready<Result<(), String>> + Send + Sync + 'static {
        let projects = self.clone();
        move || ready(if projects.live.is_known() { Ok(()) } else { Err(UNKNOWN.to_owned()) })
    }

    /// Refuses a project that is switched off.
    pub(crate) fn check(&self, project: &str) -> Result<(), Status> {
        if self.decide(project).0 {
            return Ok(());
        }
        let message = format!("image streaming is switched off for the project {project}");
        let by = [(SWITCH.to_owned(), OFF.to_owned()), ("project".to_owned(), project.to_owned())];
        Err(Refusal::Denied.with(message, by.into(), None))
    }

    /// The first that says something of this project, then of all that are not named.
    fn decide(&self, project: &str) -> (bool, Source) {
        let of = |said: &Said| (said.switches.get(project).copied(), said.streaming);
        let (live, live_rest) = self.live.look(of);
        let (file, file_rest) = self.file.as_ref().map_or((None, None), |file| file.look(of));
        let configured = self.config.switches.get(project).copied();
        let rest = self.config.streaming;
        let source =
            if rest == Config::default().streaming { Source::Default } else { Source::Configuration };
        let all = [
            (live, Source::Live),
            (file, Source::File),
            (configured, Source::Configuration),
            (live_rest, Source::Live),
            (file_rest, Source::File),
        ];
        let first = all.into_iter().find_map(|(said, source)| said.map(|on| (on, source)));
        first.unwrap_or((rest, source))
    }

    async fn show(self: Arc<Self>, request: ProjectsRequest) -> Result<ProjectsReply, Status> {
        let named: BTreeSet<String> = match request.project.is_empty() {
            false => [refusal::project(&request.project)?.to_string()].into(),
            true => self.named(),
        };
        let projects = named.into_iter().take(SHOWN_MAX).map(|project| {
            let (streaming, source) = self.decide(&project);
            ProjectSwitch { project, streaming, source: source.code().to_owned() }
        });
        let unknown = if self.live.is_known() { String::new() } else { UNKNOWN.to_owned() };
        Ok(ProjectsReply { projects: projects.collect(), unknown })
    }

    /// All of which something is said; the empty name stands for those of which nothing is.
    fn named(&self) -> BTreeSet<String> {
        let names = |said: &Said| said.switches.keys().cloned().collect::<Vec<_>>();
        let mut named: BTreeSet<String> = self.config.switches.keys().cloned().collect();
        named.extend(self.live.look(names));
        named.extend(self.file.as_ref().map(|file| file.look(names)).unwrap_or_default());
        named.insert(String::new());
        named
    }

    async fn switch(self: Arc<Self>, request: SwitchRequest) -> Result<SwitchReply, Status> {
        let project = Some(request.project).filter(|project| !project.is_empty());
        let project: Option<Project> = project.as_deref().map(refusal::project).transpose()?;
        let to = match request.to {
            Some(To::Streaming(on)) => Some(on),
            Some(To::Forget(true)) => None,
            _ => return Err(Refusal::Invalid.status("switch: neither on nor off is asked for")),
        };
        self.live.switch(project.as_ref(), to).await?;
        let project =
            project.map_or_else(|| "every project that is not named".to_owned(), |it| it.to_string());
        match to {
            Some(streaming) => tracing::warn!(project, streaming, "switched"),
            None => tracing::warn!(project, "a live switch was taken back"),
        }
        Ok(SwitchReply {})
    }
}

impl Source {
    fn code(self) -> &'static str {
        match self {
            Source::Live => "live",
            Source::File => "file",
            Source::Configuration => "configuration",
            Source::Default => "default",
        }
    }
}

/// The switches alone, for a command that asks for them where no fetcher runs.
#[derive(Debug)]
pub struct Switches {
    _answering: Vec<Answering>,
}

impl Switches {
    pub async fn start(config: Config, bus: &Bus) -> anyhow::Result<Switches> {
        let projects = Arc::new(Projects::new(config, bus));
        Ok(Switches { _answering: projects.answer(bus).await? })
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    #[tokio::test]
    async fn a_switch_counts_at_once_and_a_file_that_is_none_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("projects.toml");
        let switches = [("off".to_owned(), false), ("both".to_owned(), true)].into();
        let config = Config { streaming: true, switches, file: Some(file.clone()), kept: None };
        let projects = Projects::new(config, &Bus::in_process());
        let streams = |expected: [bool; 3]| {
            assert_eq!(["off", "both", "other"].map(|project| projects.decide(project).0), expected);
        };
        streams([false, true, true]);
        std::fs::write(&file, "switches.both = false").unwrap();
        streams([false, false, true]);
        std::fs::write(&file, "streaming = false # the rest\nswitches.off = true").unwrap();
        streams([true, true, false]);
        std::fs::write(&file, "streaming = maybe, or not, who knows").unwrap();
        streams([true, true, false]);
        std::fs::remove_file(&file).unwrap();
        streams([false, true, true]);
        let status = projects.check("off").unwrap_err();
        assert_eq!(Refusal::of(&status), Some(Refusal::Denied));
        assert_eq!(status.get_details_error_info().unwrap().metadata[SWITCH], OFF);
    }

    async fn switched(projects: &Arc<Projects>, project: &str, to: To) {
        let request = SwitchRequest { project: project.to_owned(), to: Some(to) };
        projects.clone().switch(request).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_switched_live_counts_before_file_and_configuration_and_for_all_fetchers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("projects.toml");
        std::fs::write(&file, "streaming = true\nswitches.filed = true").unwrap();
        let switches = [("configured".to_owned(), true)].into();
        let config = Config { streaming: true, switches, file: Some(file), kept: None };
        let (bus, tasks, shutdown) = (Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        let one = Projects::follow(config.clone(), &bus, &tasks, shutdown.clone()).await;
        let other = Projects::follow(config, &bus, &tasks, shutdown.clone()).await;
        switched(&one, "filed", To::Streaming(false)).await;
        switched(&one, "", To::Streaming(false)).await;
        let expected = [
            ("filed", (false, Source::Live)),
            ("configured", (true, Source::Configuration)),
            ("others", (false, Source::Live)),
        ];
        for projects in [&one, &other] {
            let until = async {
                while expected.iter().any(|(project, decided)| projects.decide(project) != *decided) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), until).await.unwrap();
        }
        let shown = one.clone().show(ProjectsRequest::default()).await.unwrap();
        let shown: Vec<_> = shown.projects.iter().map(|it| (it.project.as_str(), it.streaming)).collect();
        assert_eq!(shown, [("", false), ("configured", true), ("filed", false)]);
        // What is no switch leaves what was said.
        let table = bus.table("projects");
        table.put("filed", "maybe".into()).await.unwrap();
        table.put("no project", "on".into()).await.unwrap();
        switched(&one, "", To::Forget(true)).await;
        let back = async {
            while other.decide("others") != (true, Source::File) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), back).await.unwrap();
        assert_eq!(other.decide("filed"), (false, Source::Live));
        let wrong = SwitchRequest { project: "a/b".to_owned(), to: Some(To::Streaming(true)) };
        assert_eq!(Refusal::of(&one.clone().switch(wrong).await.unwrap_err()), Some(Refusal::Invalid));
        shutdown.cancel();
    }

    #[tokio::test]
    async fn without_a_mesh_a_switch_stays_in_a_file_that_other_processes_read() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Some(folder.path().join("state").join("projects.toml"));
        let projects = || {
            Arc::new(Projects::new(Config { kept: kept.clone(), ..Config::default() }, &Bus::in_process()))
        };
        let (command, node) = (projects(), projects());
        assert!(node.decide("p").0);
        switched(&command, "p", To::Streaming(false)).await;
        assert_eq!(node.decide("p"), (false, Source::Live));
        switched(&command, "q", To::Streaming(false)).await;
        switched(&command, "p", To::Forget(true)).await;
        assert_eq!((node.decide("p").0, node.decide("q").0), (true, false));
    }
}
