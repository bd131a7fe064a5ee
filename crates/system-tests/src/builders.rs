//! The same application built by three builders: buildah, docker and umoci.
//!
//! The first layer holds a busybox root with everything that a layer can carry; the second removes,
//! replaces, re-owns and links, as a `RUN` line of a Dockerfile would.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use testkit::Server;

/// What the first layer holds, made by a shell script in the folder it is to fill.
const FILL: &str = r#"
mkdir -p bin etc/app/conf.d usr/share/app/a/b var/lib/app tmp 'odd names'
cp "$(command -v busybox)" bin/busybox
for name in sh rm mv ln chown chmod mkdir touch cat; do ln -s busybox bin/$name; done
chmod 1777 tmp
for n in $(seq 1 200); do echo "setting $n" > etc/app/conf.d/$n.conf; done
head -c 3000000 /dev/urandom > usr/share/app/big
head -c 100000 /dev/urandom > usr/share/app/a/middle
ln usr/share/app/big usr/share/app/b-hard-link
ln -s ../share/app/big usr/share/app/a/link
ln -s /nowhere usr/share/app/dangling
printf 'name' > "odd names/$(printf 'caf\303\251 \377 not utf-8')"
: > usr/share/app/empty
chmod 4755 bin/busybox
chown -h 12:34 usr/share/app/a/link
chown 1000:1001 var/lib/app
setfattr -n user.colour -v blue usr/share/app/a/middle
setcap cap_net_raw+ep usr/share/app/a/middle
touch -d '2001-02-03 04:05:06' usr/share/app/big
touch -d '1969-12-31 23:00:00' usr/share/app/empty
truncate -s 5M usr/share/app/sparse
"#;

/// What the second layer changes, run with the root of the image as `/`.
const CHANGE: &str = "rm -r /etc/app/conf.d && mkdir /etc/app/conf.d && echo new > /etc/app/conf.d/only.conf \
    && rm /usr/share/app/dangling && mkdir /usr/share/app/dangling && rm -r /usr/share/app/a/b && touch /usr/share/app/a/b \
    && chown 7:8 /usr/share/app/big && ln /usr/share/app/a/middle /var/lib/app/middle && mv /usr/share/app/empty /var/lib/app/moved";

/// Builds with umoci into the OCI layout `layout`.
pub fn umoci(work: &Path, layout: &Path) -> anyhow::Result<String> {
    let image = format!("{}:latest", layout.display());
    let bundle = work.join("umoci-bundle");
    shell(work, &format!("umoci init --layout {} && umoci new --image {image}", layout.display()))?;
    for script in [FILL.to_owned(), format!("chroot . /bin/busybox sh -c '{CHANGE}'")] {
        shell(work, &format!("umoci unpack --image {image} {}", bundle.display()))?;
        shell(&bundle.join("rootfs"), &script)?;
        shell(work, &format!("umoci repack --image {image} {0} && rm -r {0}", bundle.display()))?;
    }
    Ok(format!("oci:{image}"))
}

/// Builds with buildah into the OCI layout `layout`.
pub fn buildah(work: &Path, layout: &Path) -> anyhow::Result<String> {
    let context = context(work)?;
    let storage =
        format!("--root {0}/storage --runroot {0}/storage-run --storage-driver vfs", work.display());
    let image = format!("oci:{}:latest", layout.display());
    shell(
        &context,
        &format!(
            "buildah {storage} bud --layers --isolation chroot --tag app . \
             && buildah {storage} push app {image}"
        ),
    )?;
    Ok(image)
}

/// Builds with a docker engine of its own and saves to the archive `archive`.
pub fn docker(work: &Path, archive: &Path) -> anyhow::Result<String> {
    let context = context(work)?;
    let engine = Engine::start(&work.join("docker"))?;
    shell(
        &context,
        &format!(
            "export DOCKER_BUILDKIT=0 DOCKER_HOST={0}; docker build --quiet --network none --tag app . \
             && docker save --output {1} app",
            engine.host,
            archive.display()
        ),
    )?;
    Ok(format!("docker-archive:{}", archive.display()))
}

/// Unpacks an OCI layout with umoci: the reference that mounted trees are compared with.
pub fn unpack(layout_reference: &str, into: &Path) -> anyhow::Result<()> {
    let image = layout_reference.strip_prefix("oci:").context("an oci: reference")?;
    shell(Path::new("/"), &format!("umoci unpack --image {image} {}", into.display()))
}

/// Copies any image to an OCI layout, for [`unpack`].
pub fn to_layout(reference: &str, layout: &Path) -> anyhow::Result<String> {
    let target = format!("oci:{}:latest", layout.display());
    shell(Path::new("/"), &format!("skopeo copy --quiet {reference} {target}"))?;
    Ok(target)
}

/// Runs a shell script in `folder`; its errors are the error's text.
pub fn shell(folder: &Path, script: &str) -> anyhow::Result<()> {
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .output()
        .with_context(|| format!("running a shell in {}", folder.display()))?;
    let text = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{script}\n{}: {}", output.status, String::from_utf8_lossy(&text));
    Ok(())
}

/// A build context: the first layer as a tar archive, so that every attribute survives, and a Dockerfile.
fn context(work: &Path) -> anyhow::Result<std::path::PathBuf> {
    let (root, context) = (work.join("root"), work.join("context"));
    for folder in [&root, &context] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
    }
    shell(&root, FILL)?;
    shell(&root, &format!("tar --xattrs --xattrs-include='*' -cf {}/root.tar .", context.display()))?;
    let dockerfile = format!(
        "FROM scratch\nADD root.tar /\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"{CHANGE}\"]\nCMD [\"/bin/sh\"]\n"
    );
    fs::write(context.join("Dockerfile"), dockerfile)?;
    Ok(context)
}

/// A docker engine with its own folders and socket.
struct Engine {
    host: String,
    _server: Server,
}

impl Engine {
    fn start(folder: &Path) -> anyhow::Result<Engine> {
        fs::create_dir_all(folder)?;
        let host = format!("unix://{}/docker.sock", folder.display());
        let mut command = Command::new("dockerd");
        command.args([
            "--host",
            &host,
            "--bridge=none",
            "--iptables=false",
            "--ip-forward=false",
            "--storage-driver=vfs",
        ]);
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "docker.pid")] {
            command.arg(flag).arg(folder.join(name));
        }
        let mut server = Server::spawn(command, &folder.join("docker.log"), "Debian's package `docker.io`")?;
        server.wait_until("dockerd", || {
            let mut info = Command::new("docker");
            info.args(["--host", &host, "info"]).output().is_ok_and(|output| output.status.success())
        })?;
        Ok(Engine { host, _server: server })
    }
}
