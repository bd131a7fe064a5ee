//! containerd's configuration, as far as it decides which snapshotter Kubernetes uses.
//!
//! It has had several forms (`version = 1` to `4`), in which the plugin that pulls images has another name each, and
//! it may be spread over imported files. Of those a later one replaces, for each plugin, what an earlier one says, so
//! the keys go where the last word is.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

use super::keys::Wanted;

/// How containerd knows us.
pub const SNAPSHOTTER: &str = "sluice";
/// What containerd uses when nothing is said.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
const DEFAULT_SOCKET: &str = "/run/containerd/containerd.sock";
/// Every containerd since 1.3 reads this.
const OLD_FORM: i64 = 2;
/// containerd 2's own.
const NEW_FORM: i64 = 3;

/// Where a file says how images are pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `[plugins.cri.containerd]`, of files without a version.
    Short,
    /// `[plugins."io.containerd.grpc.v1.cri".containerd]`
    Grpc,
    /// `[plugins.'io.containerd.cri.v1.images']`
    Images,
}

impl Form {
    fn plugin(self) -> &'static str {
        match self {
            Form::Short => "cri",
            Form::Grpc => "io.containerd.grpc.v1.cri",
            Form::Images => "io.containerd.cri.v1.images",
        }
    }

    /// The table that names the snapshotter.
    fn table(self) -> Vec<&'static str> {
        let mut names = vec!["plugins", self.plugin()];
        if self != Form::Images {
            names.push("containerd");
        }
        names
    }

    /// Every table in which the snapshotter must stand. Of the older forms containerd 2 believes the table only where a runtime
    /// is configured beside it, or not at all, and containerd 1 passes over what it does not know: so it is said in both words, and
    /// an upgrade of containerd changes nothing.
    fn tables(self) -> Vec<Vec<&'static str>> {
        match self {
            Form::Images => vec![self.table()],
            Form::Short | Form::Grpc => vec![self.table(), Form::Images.table()],
        }
    }
}

/// One file of the configuration.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    table: toml::Table,
    form: Form,
}

impl Source {
    /// `main`: what imports this file; none: this is the one that containerd is started with.
    pub fn read(path: PathBuf, text: &str, main: Option<&Source>) -> anyhow::Result<Source> {
        super::text::parse(text).with_context(|| format!("read {}", path.display()))?;
        let table: toml::Table = text.parse().with_context(|| format!("read {}", path.display()))?;
        let form =
            form(&table, main.map(|main| main.form)).with_context(|| format!("read {}", path.display()))?;
        Ok(Source { path, table, form })
    }

    /// Patterns of the files that it imports.
    pub fn imports(&self) -> Vec<&str> {
        let list = self.table.get("imports").and_then(toml::Value::as_array);
        list.map(|list| list.iter().filter_map(toml::Value::as_str).collect()).unwrap_or_default()
    }

    fn get(&self, names: &[&str]) -> Option<&toml::Value> {
        let (first, rest) = names.split_first()?;
        rest.iter().try_fold(self.table.get(*first)?, |value, name| value.as_table()?.get(*name))
    }
}

fn form(table: &toml::Table, main: Option<Form>) -> anyhow::Result<Form> {
    let plugins = table.get("plugins").and_then(toml::Value::as_table);
    let has = |form: Form| plugins.is_some_and(|plugins| plugins.contains_key(form.plugin()));
    Ok(match table.get("version").map(|version| version.as_integer().context("version is not a number")) {
        Some(version) => match version? {
            // 4 moved what listens and serves; images are pulled as before.
            NEW_FORM | 4 => Form::Images,
            OLD_FORM => Form::Grpc,
            // Long names were taken in the short form too.
            1 if has(Form::Grpc) => Form::Grpc,
            1 => Form::Short,
            other => bail!("version {other} of containerd's configuration is not known here: 1 to 4 are"),
        },
        // The oldest first: ours is said in new words beside them.
        None if has(Form::Grpc) => Form::Grpc,
        None if has(Form::Short) => Form::Short,
        None if has(Form::Images) => Form::Images,
        // An imported file without a version speaks of nothing that matters here; else it would be one of those.
        None => main.unwrap_or(Form::Short),
    })
}

/// Files in the order in which containerd reads them; the first is never missing.
#[derive(Clone, Debug)]
pub struct Configuration(pub Vec<Source>);

impl Configuration {
    /// The file that has the last word on pulling images.
    pub fn decisive(&self) -> Option<&Source> {
        let speaks = |source: &&Source| source.get(&["plugins", source.form.plugin()]).is_some();
        self.0.iter().rfind(speaks).or(self.0.first())
    }

    /// The snapshotter that Kubernetes' images are unpacked with.
    pub fn snapshotter(&self) -> String {
        let said = self.0.iter().rev().find_map(|source| {
            let names = [source.form.table(), vec!["snapshotter"]].concat();
            source.get(&names)?.as_str().filter(|name| !name.is_empty())
        });
        said.unwrap_or(DEFAULT_SNAPSHOTTER).to_owned()
    }

    /// Where containerd listens.
    pub fn socket(&self) -> PathBuf {
        let said = self.0.iter().rev().find_map(|source| {
            let moved = source.get(&["plugins", "io.containerd.server.v1.grpc", "address"]);
            moved.or(source.get(&["grpc", "address"]))?.as_str().filter(|path| !path.is_empty())
        });
        PathBuf::from(said.unwrap_or(DEFAULT_SOCKET))
    }

    /// The file that switches off what Kubernetes speaks to, as some packages' own configuration does.
    pub fn without_kubernetes(&self) -> Option<&Source> {
        let off = |source: &&Source| {
            let list = source.table.get("disabled_plugins").and_then(toml::Value::as_array);
            let names = list.into_iter().flatten().filter_map(toml::Value::as_str);
            let forms = [Form::Short, Form::Grpc, Form::Images];
            names.into_iter().any(|name| forms.iter().any(|form| form.plugin() == name))
        };
        self.0.iter().find(off)
    }
}

/// What the decisive file must say for Kubernetes.
pub fn wanted(source: &Source, socket: &str, root: &str) -> Vec<Wanted> {
    let mut wanted = wanted_by_all(socket, root);
    for table in source.form.tables() {
        wanted.push(Wanted::new(&[&table[..], &["snapshotter"]].concat(), SNAPSHOTTER));
        // Without it nobody says which image a layer belongs to, and nothing streams.
        wanted.push(Wanted::new(&[&table[..], &["disable_snapshot_annotations"]].concat(), false));
    }
    wanted
}

/// What it must say for whoever names the snapshotter with each of its requests, as Docker does.
pub fn wanted_by_all(socket: &str, root: &str) -> Vec<Wanted> {
    let proxy = ["proxy_plugins", SNAPSHOTTER];
    let proxy = |names: &[&str], value: &str| Wanted::new(&[&proxy[..], names].concat(), value);
    vec![
        proxy(&["type"], "snapshot"),
        proxy(&["address"], socket),
        // The kubelet's image garbage collection looks at the file system of this folder.
        proxy(&["exports", "root"], root),
        // That images are named in labels, for pulls by the transfer service.
        proxy(&["exports", "enable_remote_snapshot_annotations"], "true"),
    ]
}

/// A release of containerd: `1.6`, `2.4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(u32, u32);

/// The first whose snapshots are asked for as sluice answers, and that still got fixes when this was written.
const OLDEST: Release = Release(1, 6);
/// The newest that the tests run.
const NEWEST_TRIED: Release = Release(2, 4);

impl Release {
    /// What `containerd --version` says of itself.
    pub fn of(line: &str) -> Option<Release> {
        let number = line.split_whitespace().nth(2)?.trim_start_matches('v');
        let mut numbers = number.split(|other: char| !other.is_ascii_digit()).map(str::parse);
        Some(Release(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Refuses one that is known not to work; of one that nobody has tried, what to tell.
    pub fn check(self) -> anyhow::Result<Option<String>> {
        let Release(major, minor) = self;
        ensure!(
            self >= OLDEST,
            "containerd {major}.{minor} is too old: sluice works with {}.{} and newer; update it first, nothing was changed",
            OLDEST.0,
            OLDEST.1
        );
        let newest = format!("{}.{}", NEWEST_TRIED.0, NEWEST_TRIED.1);
        Ok((self > NEWEST_TRIED).then(|| {
            format!("containerd {major}.{minor} is newer than what sluice was tried with ({newest}): start a pod of a streamed image first")
        }))
    }
}

/// The text of a configuration where there is none, for a containerd of this release; where none is known, one that all read.
pub fn new_text(release: Option<Release>) -> String {
    let form = if release.is_some_and(|Release(major, _)| major >= 2) { NEW_FORM } else { OLD_FORM };
    format!("version = {form}\n")
}

#[cfg(test)]
mod tests {
    use super::super::keys::{merge, take_out};
    use super::*;

    fn configuration(texts: &[&str]) -> Configuration {
        let mut sources: Vec<Source> = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            sources.push(Source::read(format!("/{number}").into(), text, sources.first()).unwrap());
        }
        Configuration(sources)
    }

    /// The text with our keys in it.
    fn installed(text: &str) -> String {
        let configuration = configuration(&[text]);
        let wanted = wanted(&configuration.0[0], "/run/s.sock", "/var/lib/sluice");
        let (new, edits) = merge(text, &wanted).unwrap();
        let again = self::wanted(&self::configuration(&[&new]).0[0], "/run/s.sock", "/var/lib/sluice");
        assert_eq!(again, wanted, "the second time wants something else");
        assert_eq!(merge(&new, &wanted).unwrap().0, new, "the second time changes something");
        assert_eq!(take_out(&new, &edits).unwrap().0, text, "not what it was");
        assert_eq!(self::configuration(&[&new]).snapshotter(), "sluice");
        new
    }

    #[test]
    fn each_form_is_written_in_its_own_words() {
        let proxy = "
[proxy_plugins.sluice]
type = \"snapshot\"
address = \"/run/s.sock\"

[proxy_plugins.sluice.exports]
root = \"/var/lib/sluice\"
enable_remote_snapshot_annotations = \"true\"
";
        let keys = "snapshotter = \"sluice\"\ndisable_snapshot_annotations = false\n";
        let images = "plugins.\"io.containerd.cri.v1.images\"";
        for (text, table) in [
            ("", "plugins.cri.containerd"),
            ("version = 1\n", "plugins.cri.containerd"),
            ("version = 2\n", "plugins.\"io.containerd.grpc.v1.cri\".containerd"),
            ("version = 3\n", images),
            ("version = 4\n", images),
        ] {
            let mut new = format!("{text}{proxy}\n[{table}]\n{keys}");
            if table != images {
                new += &format!("\n[{images}]\n{keys}");
            }
            assert_eq!(installed(text).trim_start(), new.trim_start(), "{text}");
        }
    }

    #[test]
    fn a_default_configuration_of_each_form_is_changed_in_place() {
        let old = "version = 2\n\n[plugins]\n\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n\n    \
            [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n      disable_snapshot_annotations = true\n      \
            snapshotter = \"overlayfs\"\n\n[proxy_plugins]\n\n[timeouts]\n";
        let new = installed(old);
        assert!(
            new.contains(
                "      disable_snapshot_annotations = false\n      snapshotter = \"sluice\"\n\n[proxy_plugins]\n"
            ),
            "{new}"
        );
        let old = "version = 3\n[plugins]\n  [plugins.'io.containerd.cri.v1.images']\n    snapshotter = 'overlayfs'\n    \
            disable_snapshot_annotations = true\n\n    [plugins.'io.containerd.cri.v1.images'.pinned_images]\n";
        assert!(
            installed(old)
                .contains("    snapshotter = \"sluice\"\n    disable_snapshot_annotations = false\n")
        );
    }

    #[test]
    fn another_snapshotter_and_an_older_entry_of_ours_come_back() {
        let text = "version = 2\n[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/stargz.sock'\n\
            [proxy_plugins.sluice]\ntype = 'snapshot'\naddress = '/run/older.sock'\n\
            [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'stargz'\n";
        let new = installed(text);
        assert!(
            new.contains("[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/stargz.sock'\n"),
            "{new}"
        );
        assert!(!new.contains("older.sock"), "{new}");
    }

    #[test]
    fn the_last_file_that_speaks_of_images_decides() {
        let old = "[plugins.'io.containerd.grpc.v1.cri'.registry]\nx = 1\n";
        let new = "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'other'\n";
        for (texts, decisive, snapshotter) in [
            (&["version = 2\n", "[debug]\nlevel = 'info'\n"][..], "/0", "overlayfs"),
            (&["version = 2\n", old, "[grpc]\nuid = 1\n"], "/1", "overlayfs"),
            (&["version = 3\n", new, new], "/2", "other"),
            // containerd 2 takes older files among its imports.
            (
                &[new, "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'x'\n"],
                "/1",
                "x",
            ),
            // In the new form that name is about serving alone.
            (&[new, "version = 3\n[plugins.'io.containerd.grpc.v1.cri']\nx = 1\n"], "/0", "other"),
        ] {
            let configuration = configuration(texts);
            assert_eq!(configuration.decisive().unwrap().path.to_str(), Some(decisive), "{texts:?}");
            assert_eq!(configuration.snapshotter(), snapshotter, "{texts:?}");
        }
    }

    #[test]
    fn reads_what_else_it_must_know() {
        assert_eq!(configuration(&["", "[grpc]\naddress = '/a'\n"]).socket().to_str(), Some("/a"));
        let moved = "version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/b'\n";
        assert_eq!(configuration(&[moved]).socket().to_str(), Some("/b"));
        assert_eq!(configuration(&[""]).socket().to_str(), Some(DEFAULT_SOCKET));
        assert!(configuration(&["disabled_plugins = ['cri']\n"]).without_kubernetes().is_some());
        assert!(configuration(&["disabled_plugins = ['aufs']\n"]).without_kubernetes().is_none());
        assert_eq!(configuration(&["imports = ['a/*.toml', 1]\n"]).0[0].imports(), ["a/*.toml"]);
        let unknown = Source::read("/etc/c.toml".into(), "version = 9\n", None).unwrap_err();
        assert!(format!("{unknown:#}").contains("/etc/c.toml: version 9"), "{unknown:#}");
    }

    #[test]
    fn a_new_file_has_the_form_of_the_containerd_that_is_there() {
        let new = "containerd github.com/containerd/containerd/v2 v2.1.3 c787fb98";
        let old = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3";
        assert_eq!(new_text(Release::of(new)), "version = 3\n");
        assert_eq!(new_text(Release::of(old)), "version = 2\n");
        assert_eq!(new_text(Release::of("nonsense")), "version = 2\n");
        assert_eq!(new_text(None), "version = 2\n");
    }

    #[test]
    fn containerds_that_are_too_old_are_refused_and_those_of_tomorrow_told() {
        let check = |number: &str| {
            let line = format!("containerd github.com/containerd/containerd/v2 {number} 0123abc");
            Release::of(&line).unwrap().check()
        };
        for tried in ["1.6.20~ds1", "v1.7.24", "2.0.0-rc.1", "2.4.2+unknown"] {
            assert_eq!(check(tried).unwrap(), None, "{tried}");
        }
        let refusal = check("v1.5.18").unwrap_err().to_string();
        assert!(refusal.contains("1.5 is too old") && refusal.contains("1.6"), "{refusal}");
        assert!(check("0.2.9").is_err());
        assert!(check("2.5.0").unwrap().unwrap().contains("2.4") && check("3.0.0").unwrap().is_some());
        assert_eq!(Release::of("containerd of somebody's own"), None);
    }
}
