//! The runtime bundle's `config.json`: a pure function of image, options and identity.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use oci_spec::runtime::{
    Capabilities, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::user::Identity;
use super::{ImageConfig, Init, Network, RunOptions, defaults};

/// Describes the container `id` over the root file system at `root`.
pub fn spec(
    id: &str,
    root: &Path,
    config: &ImageConfig,
    options: &RunOptions,
    identity: &Identity,
) -> anyhow::Result<Spec> {
    let linux = LinuxBuilder::default()
        .namespaces(namespaces(options.network)?)
        .masked_paths(strings(defaults::MASKED))
        .readonly_paths(strings(defaults::READ_ONLY))
        .resources(
            LinuxResourcesBuilder::default()
                .devices(vec![LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?])
                .build()?,
        )
        .build()?;
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(root).readonly(options.read_only).build()?)
        .process(process(config, options, identity)?)
        .mounts(mounts(options)?)
        .linux(linux)
        .annotations(annotations(config))
        .build()?;
    spec.set_hostname((options.network != Network::Host).then(|| id.to_owned()));
    Ok(spec)
}

fn process(config: &ImageConfig, options: &RunOptions, identity: &Identity) -> anyhow::Result<Process> {
    let (mut words, mut variables) = (arguments(config, options)?, environment(config, options));
    if let Some(init) = &options.init {
        (words, variables) = (init.around(words), Init::variables(variables));
    }
    let capabilities: Capabilities = defaults::CAPABILITIES.iter().copied().collect();
    let working_dir = options.working_dir.as_deref().unwrap_or(&config.working_dir);
    let process = ProcessBuilder::default()
        .terminal(options.terminal)
        .user(
            UserBuilder::default()
                .uid(identity.uid)
                .gid(identity.gid)
                .additional_gids(identity.additional_gids.clone())
                .build()?,
        )
        .args(words)
        .env(variables)
        .cwd(Path::new("/").join(working_dir))
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities.clone())
                .effective(capabilities.clone())
                .permitted(capabilities)
                .inheritable(Capabilities::new())
                .ambient(Capabilities::new())
                .build()?,
        )
        // The caller's own.
        .rlimits(Vec::new())
        .no_new_privileges(false);
    process.build().context("describe the container's process")
}

/// The command line, as Docker puts it together.
fn arguments(config: &ImageConfig, options: &RunOptions) -> anyhow::Result<Vec<String>> {
    let (entrypoint, image_command) = match &options.entrypoint {
        Some(entrypoint) => (std::slice::from_ref(entrypoint), &[][..]),
        None => (&config.entrypoint[..], &config.cmd[..]),
    };
    let command = if options.command.is_empty() { image_command } else { &options.command[..] };
    let arguments: Vec<String> =
        entrypoint.iter().chain(command).filter(|word| !word.is_empty()).cloned().collect();
    if arguments.is_empty() {
        bail!("the image names no command: give one after `--`");
    }
    // An empty word is dropped only as the command itself (`--entrypoint ""`), not among its arguments.
    Ok(entrypoint.iter().chain(command).skip_while(|word| word.is_empty()).cloned().collect())
}

/// The image's variables, then the user's in their place; `PATH` and, on a terminal, `TERM` always exist.
fn environment(config: &ImageConfig, options: &RunOptions) -> Vec<String> {
    let mut variables: Vec<String> = vec![defaults::PATH.to_owned()];
    if options.terminal {
        variables.push("TERM=xterm".to_owned());
    }
    for variable in config.env.iter().chain(&options.env) {
        let name = name_of(variable);
        match variables.iter_mut().find(|existing| name_of(existing) == name) {
            Some(existing) => existing.clone_from(variable),
            None => variables.push(variable.clone()),
        }
    }
    variables
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

fn mounts(options: &RunOptions) -> anyhow::Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for mount in defaults::MOUNTS {
        mounts.push(
            MountBuilder::default()
                .destination(mount.destination)
                .typ(mount.kind)
                .source(mount.source)
                .options(strings(mount.options))
                .build()?,
        );
    }
    for (file, name) in options.init.iter().flat_map(|init| &init.files) {
        mounts.push(bind(file, &Init::path_of(name), true)?);
    }
    let covered = |path: &str| options.volumes.iter().any(|volume| volume.destination == Path::new(path));
    if options.network == Network::Host {
        for file in
            defaults::NAME_SERVICE_FILES.iter().filter(|file| Path::new(file).exists() && !covered(file))
        {
            mounts.push(bind(Path::new(file), Path::new(file), true)?);
        }
    } else if !covered(defaults::HOSTS) {
        // The container's own, which lies in the bundle: whoever runs in it may change it.
        mounts.push(bind(Path::new(defaults::OWN_HOSTS), Path::new(defaults::HOSTS), false)?);
    }
    for volume in &options.volumes {
        mounts.push(bind(&volume.source, &volume.destination, volume.read_only)?);
    }
    Ok(mounts)
}

fn bind(source: &Path, destination: &Path, read_only: bool) -> anyhow::Result<Mount> {
    let access = if read_only { "ro" } else { "rw" };
    let mount = MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(PathBuf::from(source))
        .options(strings(&["rbind", access, "rprivate"]));
    Ok(mount.build()?)
}

fn namespaces(network: Network) -> anyhow::Result<Vec<LinuxNamespace>> {
    let mut kinds = vec![LinuxNamespaceType::Pid, LinuxNamespaceType::Ipc, LinuxNamespaceType::Mount];
    if network != Network::Host {
        // The host's network goes by the host's name.
        kinds.extend([LinuxNamespaceType::Uts, LinuxNamespaceType::Network]);
    }
    let build = |kind| Ok(LinuxNamespaceBuilder::default().typ(kind).build()?);
    kinds.into_iter().map(build).collect()
}

fn annotations(config: &ImageConfig) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> =
        config.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    annotations.retain(|name, _| !name.is_empty());
    if !config.stop_signal.is_empty() {
        annotations.insert("org.opencontainers.image.stopSignal".to_owned(), config.stop_signal.clone());
    }
    annotations
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Volume;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["serve".to_owned()],
            env: strings(&["PATH=/opt/bin", "MODE=prod"]),
            working_dir: "/srv".to_owned(),
            stop_signal: "SIGQUIT".to_owned(),
            ..ImageConfig::default()
        }
    }

    fn build(options: &RunOptions) -> Spec {
        spec("c1", Path::new("/root"), &image(), options, &Identity::default()).unwrap()
    }

    #[test]
    fn command_lines_follow_docker() {
        let words = |entrypoint: Option<&str>, command: &[&str]| {
            let entrypoint = entrypoint.map(str::to_owned);
            let options = RunOptions { entrypoint, command: strings(command), ..RunOptions::default() };
            arguments(&image(), &options).map_err(|error| error.to_string())
        };
        assert_eq!(words(None, &[]), Ok(strings(&["/entry", "serve"])));
        assert_eq!(words(None, &["check", ""]), Ok(strings(&["/entry", "check", ""])));
        assert_eq!(words(Some("sh"), &[]), Ok(strings(&["sh"])));
        assert_eq!(words(Some("sh"), &["-c", "x"]), Ok(strings(&["sh", "-c", "x"])));
        assert_eq!(words(Some(""), &["ls"]), Ok(strings(&["ls"])));
        assert!(words(Some(""), &[]).is_err());
        assert!(arguments(&ImageConfig::default(), &RunOptions::default()).is_err());
    }

    #[test]
    fn variables_replace_each_other_by_name() {
        let options =
            RunOptions { env: strings(&["MODE=test", "NEW=1"]), terminal: true, ..RunOptions::default() };
        let expected = ["PATH=/opt/bin", "TERM=xterm", "MODE=test", "NEW=1"];
        assert_eq!(environment(&image(), &options), strings(&expected));
        assert_eq!(environment(&ImageConfig::default(), &RunOptions::default()), [defaults::PATH]);
    }

    #[test]
    fn networks_and_volumes_become_namespaces_and_mounts() {
        let volume: Volume = "/data:/etc/hosts:ro".parse().unwrap();
        let on_host = RunOptions { network: Network::Host, ..RunOptions::default() };
        let host = build(&RunOptions { volumes: vec![volume], ..on_host });
        let kinds = |spec: &Spec| -> Vec<LinuxNamespaceType> {
            let linux = spec.linux().as_ref().unwrap();
            linux.namespaces().as_ref().unwrap().iter().map(|namespace| namespace.typ()).collect()
        };
        assert!(!kinds(&host).contains(&LinuxNamespaceType::Network));
        assert_eq!(host.hostname(), &None);
        let hosts = |spec: &Spec| -> Vec<PathBuf> {
            let mounts = spec.mounts().as_ref().unwrap().iter();
            let named = mounts.filter(|mount| mount.destination() == Path::new("/etc/hosts"));
            named.map(|mount| mount.source().clone().unwrap()).collect()
        };
        assert_eq!(hosts(&host), [Path::new("/data")]);
        let none = build(&RunOptions::default());
        assert!(kinds(&none).contains(&LinuxNamespaceType::Network));
        assert_eq!(none.hostname().as_deref(), Some("c1"));
        assert_eq!(hosts(&none), [Path::new("hosts")], "a file of the bundle");
        let others = none.mounts().as_ref().unwrap().iter();
        assert!(!others.map(Mount::destination).any(|path| path == Path::new("/etc/resolv.conf")));
    }

    #[test]
    fn the_spec_carries_user_directory_and_labels() {
        let identity = Identity { uid: 33, gid: 34, additional_gids: vec![50] };
        let mut config = image();
        config.labels.insert("team".to_owned(), "web".to_owned());
        let options = RunOptions { read_only: true, ..RunOptions::default() };
        let spec = spec("c1", Path::new("/root"), &config, &options, &identity).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
        assert_eq!(process.cwd(), Path::new("/srv"));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        assert_eq!(spec.annotations().as_ref().unwrap()["team"], "web");
    }
}
