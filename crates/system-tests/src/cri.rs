//! A client of a container runtime, as the kubelet is one: pods on the host's network, containers in them.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use proto::cri::image_service_client::ImageServiceClient;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use proto::cri::{
    AuthConfig, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long a container may take to end before it is killed, in seconds.
const STOP: i64 = 1;
/// How long a command in a container may take, in seconds.
const EXEC: i64 = 120;

/// How long any call may take: the pull of a large image through the simulated link needs half a minute.
const CALL: Duration = Duration::from_secs(300);
/// How long the runtime may take to get ready.
const START_MAX: Duration = Duration::from_secs(30);
const START_POLL: Duration = Duration::from_millis(50);

/// Blocking: each call drives the runtime that the client owns.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    images: ImageServiceClient<Channel>,
    containers: RuntimeServiceClient<Channel>,
}

/// A pod, under its id.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: String,
    config: PodSandboxConfig,
}

impl Cri {
    pub fn connect(socket: &Path) -> anyhow::Result<Cri> {
        Cri::connect_both(socket, socket)
    }

    /// With a socket of its own for the images, as the kubelet may have it.
    pub fn connect_both(images: &Path, containers: &Path) -> anyhow::Result<Cri> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let images = ImageServiceClient::new(runtime.block_on(channel(images.to_owned()))?);
        let containers = RuntimeServiceClient::new(runtime.block_on(channel(containers.to_owned()))?);
        let cri = Cri { runtime, images, containers };
        let connected = Instant::now();
        while !cri.is_initialized() {
            anyhow::ensure!(connected.elapsed() < START_MAX, "the runtime does not get ready");
            sleep(START_POLL);
        }
        Ok(cri)
    }

    /// A containerd that was just started refuses every call with these words.
    fn is_initialized(&self) -> bool {
        let nobody = ContainerStatusRequest { container_id: "nobody".to_owned() };
        let answer = self.runtime.block_on(self.containers.clone().container_status(nobody));
        answer.map_or_else(|status| !status.message().contains("not initialized"), |_| true)
    }

    pub fn pull(&self, image: &str) -> anyhow::Result<String> {
        self.pull_as(image, None)
    }

    /// With the credential that the kubelet would hand on.
    pub fn pull_as(&self, image: &str, auth: Option<AuthConfig>) -> anyhow::Result<String> {
        self.ask_for(PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None })
    }

    /// For a pod, as the kubelet pulls.
    pub fn pull_for(&self, image: &str, pod: &Pod) -> anyhow::Result<String> {
        let sandbox_config = Some(pod.config.clone());
        self.ask_for(PullImageRequest { image: Some(spec(image)), auth: None, sandbox_config })
    }

    fn ask_for(&self, request: PullImageRequest) -> anyhow::Result<String> {
        let image = request.image.clone().unwrap_or_default().image;
        let pulled = self.runtime.block_on(self.images.clone().pull_image(request));
        Ok(pulled.with_context(|| format!("pulling {image}"))?.into_inner().image_ref)
    }

    pub fn remove_image(&self, image: &str) -> anyhow::Result<()> {
        let request = RemoveImageRequest { image: Some(spec(image)) };
        self.runtime.block_on(self.images.clone().remove_image(request))?;
        Ok(())
    }

    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        self.pod_that_logs(name, Path::new(""))
    }

    /// What its containers print goes to files in a folder.
    pub fn pod_that_logs(&self, name: &str, logs: &Path) -> anyhow::Result<Pod> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let host = NamespaceMode::Node.into();
        let namespaces = NamespaceOption { network: host, ..NamespaceOption::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-{now}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) }),
                ..LinuxPodSandboxConfig::default()
            }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let run = self.runtime.block_on(self.containers.clone().run_pod_sandbox(request));
        Ok(Pod {
            id: run.with_context(|| format!("running pod {name}"))?.into_inner().pod_sandbox_id,
            config,
        })
    }

    /// Creates a container and starts it; its id.
    pub fn start(&self, pod: &Pod, name: &str, image: &str, command: &[&str]) -> anyhow::Result<String> {
        let id = self.create(pod, name, image, command)?;
        self.begin(&id)?;
        Ok(id)
    }

    /// Creates a container, with the image's own command where there is none here; its id. Its log is named after it.
    pub fn create(&self, pod: &Pod, name: &str, image: &str, command: &[&str]) -> anyhow::Result<String> {
        let security = LinuxContainerSecurityContext::default();
        self.create_as(pod, name, image, command, security, Vec::new())
    }

    /// The same for a user, with more mounts.
    pub fn create_as(
        &self,
        pod: &Pod,
        name: &str,
        image: &str,
        command: &[&str],
        security: LinuxContainerSecurityContext,
        mounts: Vec<Mount>,
    ) -> anyhow::Result<String> {
        let logs = !pod.config.log_directory.is_empty();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(spec(image)),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            mounts,
            log_path: if logs { name.to_owned() } else { String::new() },
            linux: Some(LinuxContainerConfig { security_context: Some(security) }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let created = self.runtime.block_on(self.containers.clone().create_container(request));
        Ok(created.with_context(|| format!("creating container {name}"))?.into_inner().container_id)
    }

    /// Starts a container that was created.
    pub fn begin(&self, container: &str) -> anyhow::Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        let started = self.runtime.block_on(self.containers.clone().start_container(request));
        started.with_context(|| format!("starting container {container}"))?;
        Ok(())
    }

    /// Runs a command in a container, which must succeed; what it printed.
    pub fn exec(&self, container: &str, command: &[&str]) -> anyhow::Result<String> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: EXEC,
        };
        let ran = self.runtime.block_on(self.containers.clone().exec_sync(request));
        let ran = ran.with_context(|| format!("running {command:?}"))?.into_inner();
        let errors = String::from_utf8_lossy(&ran.stderr);
        anyhow::ensure!(ran.exit_code == 0, "{command:?} ended with {}: {errors}", ran.exit_code);
        Ok(String::from_utf8(ran.stdout)?)
    }

    pub fn is_running(&self, container: &str) -> anyhow::Result<bool> {
        let request = ContainerStatusRequest { container_id: container.to_owned() };
        let status =
            self.runtime.block_on(self.containers.clone().container_status(request))?.into_inner().status;
        Ok(status.context("a status")?.state() == ContainerState::ContainerRunning)
    }

    /// Stops a container and removes it.
    pub fn stop(&self, container: &str) -> anyhow::Result<()> {
        let mut containers = self.containers.clone();
        let id = container.to_owned();
        self.runtime.block_on(async move {
            containers
                .stop_container(StopContainerRequest { container_id: id.clone(), timeout: STOP })
                .await?;
            containers.remove_container(RemoveContainerRequest { container_id: id }).await?;
            Ok(())
        })
    }

    pub fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let mut containers = self.containers.clone();
        let id = pod.id.clone();
        self.runtime.block_on(async move {
            containers.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
            containers.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
            Ok(())
        })
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned() }
}

/// A connection over a unix socket.
pub(crate) async fn channel(socket: PathBuf) -> anyhow::Result<Channel> {
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    // The address is never looked at: the socket is.
    let endpoint = Endpoint::from_static("http://localhost").timeout(CALL);
    Ok(endpoint.connect_with_connector(connect).await?)
}
