//! What the Docker engine must be for containers of it to stream, and what its configuration must say. Pure.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use super::containerd::SNAPSHOTTER;
use super::json;
use super::keys::Wanted;

/// Where Docker's images and containers are in containerd.
pub const NAMESPACE: &str = "moby";
/// The first release that says which image a layer belongs to.
const OLDEST: u32 = 24;
/// The first that takes a snapshotter's name as a storage driver by itself.
const DRIVER_ALONE: u32 = 29;
/// Releases that the tests run.
const TRIED: [u32; 2] = [26, 28];
/// Drivers whose images and containers are of no other form than those that come back when sluice goes: what Docker chooses by itself.
const USUAL_DRIVERS: [&str; 3] = ["overlay2", "overlayfs", SNAPSHOTTER];
/// Where the engine looks for its configuration.
pub const DAEMON_CONFIG: &str = "/etc/docker/daemon.json";
/// Where it listens.
pub const SOCKET: &str = "/var/run/docker.sock";

/// What an engine says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Engine {
    server_version: String,
    driver: String,
    driver_status: Option<Vec<(String, String)>>,
    docker_root_dir: String,
    security_options: Option<Vec<String>>,
    containerd: Option<Containerd>,
    containers: u64,
    containers_running: u64,
    images: u64,
    live_restore_enabled: bool,
}

/// Which containerd it works with; only newer ones say so.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Containerd {
    address: String,
}

impl Engine {
    /// Refuses an engine that cannot stream, with what to do about it; of one that nobody has tried, what to tell.
    pub fn check(&self) -> anyhow::Result<Option<String>> {
        let version = &self.server_version;
        let release = self.release();
        ensure!(
            release.is_none_or(|release| release >= OLDEST),
            "Docker {version} is too old: sluice works with {OLDEST} and newer; update it first, nothing was changed"
        );
        let says = |option: &str| {
            let wanted = format!("name={option}");
            self.security_options.iter().flatten().any(|said| said.split(',').any(|part| part == wanted))
        };
        ensure!(
            !says("rootless"),
            "this engine is rootless and runs a containerd of its own: streaming needs the system's engine, as root"
        );
        ensure!(
            !says("userns"),
            "this engine remaps users (userns-remap), for which Docker copies every file of an image: take it out of {DAEMON_CONFIG} first"
        );
        ensure!(
            !self.docker_root_dir.starts_with("/var/snap/"),
            "this engine is a snap, which sees none of sluice's sockets and mounts: install Docker from packages of Debian, Ubuntu or docker.com"
        );
        ensure!(
            !self.live_restore_enabled || self.containers_running == 0 || self.is_switched(),
            "this engine has live-restore, so the {} containers that run would go on out of its sight: stop them first, or take \
             live-restore out of {DAEMON_CONFIG}",
            self.containers_running
        );
        if let Some(containerd) = &self.containerd {
            ensure!(
                !containerd.address.contains("/docker/containerd/"),
                "this engine runs a containerd of its own ({}): install containerd as a service, and start dockerd with \
                 --containerd=/run/containerd/containerd.sock",
                containerd.address
            );
        }
        self.check_driver(&self.driver)?;
        Ok(match release {
            Some(release) if TRIED.contains(&release) => None,
            _ => Some(format!(
                "Docker {version} is not among those that sluice was tried with ({TRIED:?}): start a streamed image first"
            )),
        })
    }

    fn check_driver(&self, driver: &str) -> anyhow::Result<()> {
        ensure!(
            driver.is_empty() || USUAL_DRIVERS.contains(&driver),
            "this engine keeps images with {driver}, which somebody chose: sluice takes the place of overlay2 or overlayfs only; \
             switch to one of them first"
        );
        Ok(())
    }

    fn release(&self) -> Option<u32> {
        self.server_version.trim_start_matches('v').split('.').next()?.parse().ok()
    }

    /// Whether containers of it stand on sluice already.
    pub fn is_switched(&self) -> bool {
        self.driver == SNAPSHOTTER
    }

    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// containerd's socket, where it says so.
    pub fn containerd(&self) -> Option<&Path> {
        let address = self.containerd.as_ref().map(|containerd| containerd.address.as_str());
        address.filter(|address| !address.is_empty()).map(Path::new)
    }

    /// What somebody must know before the switch; none: nothing is lost from sight.
    pub fn hidden(&self) -> Option<String> {
        let in_containerd =
            self.driver_status.iter().flatten().any(|(_, value)| value.starts_with("io.containerd."));
        // Of another snapshotter containerd's own list of images is shown all the same.
        let images = if in_containerd { 0 } else { self.images };
        if self.is_switched() || (self.containers == 0 && images == 0) {
            return None;
        }
        let what = match images {
            0 => format!("{} containers", self.containers),
            images => format!("{} containers and {images} images", self.containers),
        };
        let stopped = match self.containers_running {
            0 => String::new(),
            running => format!("; {running} that run are stopped"),
        };
        Some(format!(
            "Docker has {what} under {}. After the switch `docker ps -a` and `docker images` do not show them{stopped}. Nothing of \
             them is removed: `sluice uninstall` brings them back",
            self.driver
        ))
    }
}

/// What the engine's configuration must say, given what it says now; of an engine that nobody could ask what all read.
pub fn wanted(engine: Option<&Engine>, now: Option<&str>) -> anyhow::Result<Vec<Wanted>> {
    if let Some(text) = now {
        check_config(text, engine)?;
    }
    let release = engine.and_then(Engine::release);
    let driver = Wanted::new(&["storage-driver"], SNAPSHOTTER);
    if release.is_some_and(|release| release >= DRIVER_ALONE) {
        return Ok(vec![driver]);
    }
    Ok(vec![Wanted::new(&["features", "containerd-snapshotter"], true), driver])
}

/// What of a configuration goes against streaming, whether the engine was started with it or not.
fn check_config(text: &str, engine: Option<&Engine>) -> anyhow::Result<()> {
    let config = json::parse(json::or_empty(text))?;
    let says = |key: &str| config.get(key).filter(|value| !value.is_null());
    if says("userns-remap").is_some_and(|value| value.as_str() != Some("")) {
        bail!("it has userns-remap, for which Docker copies every file of an image: take it out first");
    }
    if let Some(driver) = says("storage-driver") {
        let driver = driver.as_str().context("its storage-driver is not a text")?;
        engine.unwrap_or(&Engine::default()).check_driver(driver)?;
    }
    if let Some(options) = says("storage-opts")
        && options.as_array().is_none_or(|options| !options.is_empty())
    {
        bail!(
            "it has storage-opts, which are of the storage driver that sluice takes the place of: take them out first"
        );
    }
    Ok(())
}

/// Refuses a command line of the engine that says itself what its configuration is to say: it would not start.
pub fn check_flags(words: &[String]) -> anyhow::Result<()> {
    let of_driver = |word: &String| {
        word.starts_with("--storage-driver") || word == "-s" || word.starts_with("--storage-opt")
    };
    if let Some(word) = words.iter().find(|word| of_driver(word)) {
        bail!(
            "dockerd is started with {word}, and refuses a configuration that says so too: take it out of its unit first"
        );
    }
    Ok(())
}

/// Whether a dockerd with this command line reads that configuration.
pub fn reads(words: &[String], config: &Path) -> bool {
    let mut words = words.iter();
    let mut named = None;
    while let Some(word) = words.next() {
        if let Some(file) = word.strip_prefix("--config-file=") {
            named = Some(file);
        } else if word == "--config-file" {
            named = words.next().map(String::as_str);
        }
    }
    Path::new(named.unwrap_or(DAEMON_CONFIG)) == config
}

/// The docker configuration of who typed this, also through sudo or doas: it may hold what `docker login` was told.
pub fn configuration_of_caller(var: impl Fn(&str) -> Option<String>, passwd: &str) -> Option<PathBuf> {
    let caller = ["SUDO_USER", "DOAS_USER"].iter().find_map(|name| var(name).filter(|user| user != "root"));
    if let Some(user) = caller {
        let home = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.first() == Some(&user.as_str())).then(|| fields.get(5).copied()).flatten()
        });
        return home.map(|home| Path::new(home).join(".docker/config.json"));
    }
    if let Some(folder) = var("DOCKER_CONFIG") {
        return Some(Path::new(&folder).join("config.json"));
    }
    var("HOME").map(|home| Path::new(&home).join(".docker/config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(change: impl FnOnce(&mut serde_json::Value)) -> Engine {
        let mut info = serde_json::json!({
            "ServerVersion": "28.5.2+dfsg4", "Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]],
            "DockerRootDir": "/var/lib/docker", "SecurityOptions": ["name=seccomp,profile=builtin"],
            "Containerd": { "Address": "/run/containerd/containerd.sock" },
            "Containers": 0, "ContainersRunning": 0, "Images": 0, "Unknown": {},
        });
        change(&mut info);
        serde_json::from_value(info).unwrap()
    }

    #[test]
    fn what_cannot_stream_is_refused_with_a_remedy() {
        assert_eq!(engine(|_| ()).check().unwrap(), None);
        for (key, value, reason) in [
            ("ServerVersion", "20.10.24".into(), "too old: sluice works with 24"),
            ("SecurityOptions", vec!["name=rootless"].into(), "rootless"),
            ("SecurityOptions", vec!["name=seccomp,profile=builtin", "name=userns"].into(), "userns-remap"),
            ("DockerRootDir", "/var/snap/docker/common/var-lib-docker".into(), "is a snap"),
            ("Driver", "zfs".into(), "keeps images with zfs"),
            (
                "Containerd",
                serde_json::json!({ "Address": "/var/run/docker/containerd/containerd.sock" }),
                "a containerd of its own",
            ),
        ] {
            let value: serde_json::Value = value;
            let error = engine(|info| info[key] = value).check().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        // An engine of 26 does not say which containerd it works with.
        let older = engine(|info| {
            (info["ServerVersion"], info["Containerd"]) = ("26.1.5".into(), serde_json::Value::Null)
        });
        assert_eq!(older.check().unwrap(), None);
        for newer in ["31.0.0", "dev"] {
            let told = engine(|info| info["ServerVersion"] = newer.into()).check().unwrap().unwrap();
            assert!(told.contains("not among those"), "{told}");
        }
    }

    #[test]
    fn each_release_gets_the_keys_that_it_reads() {
        let keys = |version: &str, now: Option<&str>| {
            let engine = engine(|info| info["ServerVersion"] = version.into());
            wanted(Some(&engine), now).map(|wanted| {
                wanted.iter().map(|wanted| format!("{}={}", wanted.key, wanted.value)).collect::<Vec<_>>()
            })
        };
        let both = ["features.containerd-snapshotter=true", "storage-driver=\"sluice\""];
        for version in ["26.1.5", "28.5.2", "dev"] {
            assert_eq!(keys(version, Some("{\"debug\": true}")).unwrap(), both, "{version}");
        }
        assert_eq!(keys("29.1.0", None).unwrap(), both[1..]);
        assert_eq!(keys("28.5.2", Some("")).unwrap(), both);
        for (config, reason) in [
            ("{\"userns-remap\": \"default\"}", "userns-remap"),
            ("{\"storage-driver\": \"btrfs\"}", "btrfs"),
            ("{\"storage-opts\": [\"overlay2.size=1G\"]}", "storage-opts"),
            ("{\"debug\": true,}", "not valid JSON"),
        ] {
            let error = format!("{:#}", keys("28.5.2", Some(config)).unwrap_err());
            assert!(error.contains(reason), "{config}: {error}");
        }
    }

    #[test]
    fn says_what_the_switch_hides() {
        assert_eq!(engine(|_| ()).hidden(), None);
        let full = |info: &mut serde_json::Value| {
            (info["Containers"], info["ContainersRunning"], info["Images"]) = (3.into(), 1.into(), 7.into());
        };
        let told = engine(full).hidden().unwrap();
        assert!(
            told.contains("3 containers and 7 images under overlay2")
                && told.contains("1 that run are stopped"),
            "{told}"
        );
        let told = engine(|info| {
            full(info);
            info["Driver"] = "overlayfs".into();
            info["DriverStatus"] = serde_json::json!([["driver-type", "io.containerd.snapshotter.v1"]]);
        });
        assert!(told.hidden().unwrap().contains("3 containers under overlayfs"), "{told:?}");
        assert_eq!(engine(|info| info["Driver"] = "sluice".into()).hidden(), None);
    }

    #[test]
    fn command_lines_are_read_as_dockerd_reads_them() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let usual = words("/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock");
        check_flags(&usual).unwrap();
        assert!(reads(&usual, Path::new(DAEMON_CONFIG)) && !reads(&usual, Path::new("/other.json")));
        for line in ["dockerd --storage-driver=overlay2", "dockerd -s overlay2", "dockerd --storage-opt x=y"]
        {
            assert!(check_flags(&words(line)).unwrap_err().to_string().contains("take it out of its unit"));
        }
        for line in ["dockerd --config-file /other.json", "dockerd --config-file=/other.json -D"] {
            assert!(reads(&words(line), Path::new("/other.json")));
        }
    }

    #[test]
    fn the_login_is_that_of_who_typed_it() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        let of = |pairs: &[(&str, &str)]| {
            let var =
                |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            configuration_of_caller(var, passwd).map(|path| path.display().to_string())
        };
        let sudo = [("SUDO_USER", "ann"), ("HOME", "/root")];
        assert_eq!(of(&sudo).as_deref(), Some("/home/ann/.docker/config.json"));
        assert_eq!(of(&[("HOME", "/root")]).as_deref(), Some("/root/.docker/config.json"));
        let told = [("HOME", "/root"), ("DOCKER_CONFIG", "/etc/docker-login")];
        assert_eq!(of(&told).as_deref(), Some("/etc/docker-login/config.json"));
        assert_eq!(of(&[("SUDO_USER", "nobody-here")]), None);
        assert_eq!(of(&[]), None);
    }
}
