//! Somebody with all rights of project `a` who knows everything of project `b` but its bytes: every digest, name and manifest. By
//! none of that he gets a byte or a name of it; each attempt is refused and counted, and no secret stands anywhere afterwards.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use bus::{Bus, NatsConfig};
use ed25519_dalek::SigningKey;
use image::{Digest, ImageRecord, Map};
use prost::Message as _;
use proto::content_client::ContentClient;
use proto::credential::{Basic, Kind as Shown};
use proto::index_request::Kind;
use proto::resolve_reply::Answer;
use proto::signed::{Domain, sign};
use proto::{
    Call, ChunksRequest, Credential, FollowRequest, Grant, IndexRequest, InspectRequest, ListRequest,
    RemoveRequest, RenewRequest, RepairRequest, ReportRequest, ResolveRequest, Resolved, Signed,
};
use store::{Index, Store, verify};
use system_tests::services::Backend;
use system_tests::{Scratch, metrics, noise};
use testkit::lying::{ClaimedLayer, LyingRegistry};
use testkit::registry::{PASSWORD, USER};
use testkit::{Compression, ImageSpec, LayoutWriter, Registry, Tarball, port};
use tokio::runtime::Runtime;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::credentials::files_with;

const PATIENCE: Duration = Duration::from_secs(60);
/// In the name of the victim's image, and in no digest.
const WORD: &str = "zq-ledger";
const WRONG: &str = "wr0ng-horse-battery";

/// An image of a project, and all that whoever was let read it got to know.
struct Image {
    project: &'static str,
    reference: String,
    resolved: Resolved,
    record: ImageRecord,
    chunks: Vec<Digest>,
}

/// Fetcher, cache and NATS, each a process; the victim's registry, the attacker's own, and one that lies for him.
struct Field {
    scratch: Scratch,
    backend: Backend,
    fetcher_admin: u16,
    cache_admin: u16,
    bus: Bus,
    content: ContentClient<Channel>,
    private: Registry,
    _public: Registry,
    thief: LyingRegistry,
    own: Image,
    prey: Image,
    /// What was answered to the attacker.
    heard: Vec<String>,
    runtime: Runtime,
    _secrets: tempfile::TempDir,
}

fn tars(seed: u64) -> [Vec<u8>; 2] {
    [seed, seed + 1].map(|seed| Tarball::new().file(&format!("file-{seed}"), &noise(seed, 200_000)).finish())
}

fn password(password: &str) -> Option<Credential> {
    let basic = Basic { username: USER.to_owned(), password: password.to_owned() };
    Some(Credential { kind: Some(Shown::Basic(basic)) })
}

fn plain(tars: &[Vec<u8>]) -> ImageSpec {
    ImageSpec {
        layers: tars.iter().map(|tar| (tar.clone(), Some(Compression::None))).collect(),
        config: None,
    }
}

async fn resolve(bus: &Bus, request: ResolveRequest) -> Result<Resolved, Status> {
    let (project, node) = (request.project.clone(), request.node.clone());
    let mut reply = bus.call(request, PATIENCE).await?;
    loop {
        match reply.answer {
            Some(Answer::Resolved(resolved)) => return Ok(resolved),
            Some(Answer::Importing(ticket)) => {
                let (project, node) = (project.clone(), node.clone());
                let follow = FollowRequest {
                    ticket: ticket.ticket,
                    wait_ms: 1000,
                    seen_revision: u64::MAX,
                    project,
                    node,
                };
                reply = bus.call_instance(&ticket.instance, follow, PATIENCE).await?;
            }
            None => return Err(Status::internal("no answer")),
        }
    }
}

impl Image {
    async fn of(
        bus: &Bus,
        store: &Store,
        project: &'static str,
        reference: String,
        credential: Option<Credential>,
    ) -> anyhow::Result<Image> {
        let node = format!("node-{project}");
        let request = ResolveRequest {
            project: project.to_owned(),
            reference: reference.clone(),
            plain_http: true,
            credential,
            node,
            ..ResolveRequest::default()
        };
        let resolved = resolve(bus, request).await?;
        let record = ImageRecord::decode(&resolved.record.as_ref().context("a record")?.payload)?;
        let stored = store.project(project)?.index(Index::Map, record.map.digest).await?;
        let map = Map::decode(&verify::open_index(&record.map.digest, &stored)?)?;
        let chunks = map.chunks.iter().map(|chunk| chunk.digest).collect();
        Ok(Image { project, reference, resolved, record, chunks })
    }

    fn grant(&self) -> anyhow::Result<Signed> {
        self.resolved.grant.clone().context("a grant")
    }
}

impl Field {
    fn start() -> anyhow::Result<Field> {
        let (scratch, runtime) = (Scratch::new()?, Runtime::new()?);
        let (private, public) = (Registry::start_private()?, Registry::start()?);
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("prey", &plain(&tars(10)))?;
        layout.image("own", &plain(&tars(20)))?;
        let prey = private.push(&layout.reference("prey"), &format!("vault/{WORD}:v1"))?;
        let own = public.push(&layout.reference("own"), "mine:v1")?;
        std::fs::remove_dir_all(scratch.path("layout"))?;
        // The fetcher itself may read all of it, for repairs.
        let secrets = tempfile::tempdir()?;
        let host = private.host();
        let docker = format!(r#"{{"auths":{{"{host}":{{"username":"{USER}","password":"{PASSWORD}"}}}}}}"#);
        std::fs::write(secrets.path().join("config.json"), docker)?;
        let (fetcher_admin, cache_admin, cache_port) = (port::free()?, port::free()?, port::free()?);
        let fetcher = [
            format!("fetcher.source.docker_config={}", secrets.path().display()),
            format!("lifecycle.admin=127.0.0.1:{fetcher_admin}"),
        ];
        let cache = [format!("lifecycle.admin=127.0.0.1:{cache_admin}")];
        let backend = Backend::start(&scratch, cache_port, &fetcher, &cache)?;
        let store = Store::open(&scratch.path("mesh-store").display().to_string(), &Default::default())?;
        let (bus, content, own, prey) = runtime.block_on(async {
            let bus = Bus::connect(&NatsConfig { url: backend.nats.url(), ..NatsConfig::default() }).await?;
            let content = ContentClient::connect(format!("http://127.0.0.1:{cache_port}")).await?;
            let own = Image::of(&bus, &store, "a", own, None).await?;
            let prey = Image::of(&bus, &store, "b", prey, password(PASSWORD)).await?;
            anyhow::Ok((bus, content, own, prey))
        })?;
        let field = Field {
            scratch,
            backend,
            fetcher_admin,
            cache_admin,
            bus,
            content,
            private,
            _public: public,
            thief: LyingRegistry::start(true)?,
            own,
            prey,
            heard: Vec::new(),
            runtime,
            _secrets: secrets,
        };
        // He who may read it can, so that what follows is refused for want of the right, and not of the thing.
        let (project, grant, chunks) = (field.prey.project, field.prey.grant()?, field.prey.chunks.clone());
        let read =
            field.runtime.block_on(chunks_read(field.content.clone(), project, Some(&grant), &chunks, ""));
        ensure!(read.is_ok_and(|bytes| bytes > 100_000), "the victim cannot read its own image");
        Ok(field)
    }

    /// One attempt; `codes` are the answers that tell nothing.
    fn refused<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        codes: &[Code],
        attempt: impl Future<Output = Result<T, Status>>,
    ) -> anyhow::Result<()> {
        let status = match self.runtime.block_on(attempt) {
            Ok(got) => bail!("{what}: it got {got:?}"),
            Err(status) => status,
        };
        ensure!(codes.contains(&status.code()), "{what}: {status:?}");
        self.heard.push(format!("{what}: {status:?}"));
        Ok(())
    }

    fn ask<C: Call>(&mut self, what: &str, codes: &[Code], request: C) -> anyhow::Result<()>
    where
        C::Reply: std::fmt::Debug,
    {
        let bus = self.bus.clone();
        self.refused(what, codes, async move { bus.call(request, PATIENCE).await })
    }

    fn asked_for(&self, project: &str, reference: &str) -> ResolveRequest {
        ResolveRequest {
            project: project.to_owned(),
            reference: reference.to_owned(),
            node: "node-a".to_owned(),
            plain_http: true,
            ..ResolveRequest::default()
        }
    }

    fn resolve(&mut self, what: &str, codes: &[Code], request: ResolveRequest) -> anyhow::Result<()> {
        let bus = self.bus.clone();
        self.refused(what, codes, async move { resolve(&bus, request).await })
    }
}

/// The bytes that came.
async fn chunks_read(
    mut content: ContentClient<Channel>,
    project: &str,
    grant: Option<&Signed>,
    digests: &[Digest],
    manifest: &str,
) -> Result<usize, Status> {
    let request = ChunksRequest {
        project: project.to_owned(),
        digests: digests.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        manifest_digest: manifest.to_owned(),
        ..ChunksRequest::default()
    };
    let mut frames = content.get_chunks(shown(request, grant)).await?.into_inner();
    let mut bytes = 0;
    while let Some(frame) = frames.message().await? {
        bytes += frame.data.len();
    }
    Ok(bytes)
}

async fn index_read(
    mut content: ContentClient<Channel>,
    project: &str,
    grant: &Signed,
    kind: Kind,
    digest: Digest,
) -> Result<usize, Status> {
    let (project, digest) = (project.to_owned(), digest.as_bytes().to_vec());
    let request = IndexRequest { project, kind: kind.into(), digest };
    let frame = content.get_index(shown(request, Some(grant))).await?.into_inner().message().await?;
    Ok(frame.map_or(0, |frame| frame.data.len()))
}

fn shown<T>(message: T, grant: Option<&Signed>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(grant) = grant {
        let value = MetadataValue::from_bytes(&grant.encode_to_vec());
        request.metadata_mut().insert_bin("sluice-grant-bin", value);
    }
    request
}

/// Of the cache: by digest, chunk, tree, map, and with every kind of wrong grant.
fn at_the_cache(field: &mut Field) -> anyhow::Result<usize> {
    let (content, grant) = (field.content.clone(), field.own.grant()?);
    let (mine, theirs) = (field.own.chunks.clone(), field.prey.chunks.clone());
    let (manifest, record) = (field.prey.record.manifest_digest.clone(), field.prey.record.clone());
    let mut attempts = 0;
    let mut chunks = |field: &mut Field,
                      what: &str,
                      code,
                      project: &str,
                      grant: Option<&Signed>,
                      digests: &[Digest],
                      manifest: &str| {
        attempts += 1;
        field.refused(what, &[code], chunks_read(content.clone(), project, grant, digests, manifest))
    };
    let denied = Code::PermissionDenied;
    chunks(field, "his chunks in his project", denied, "b", Some(&grant), &theirs, "")?;
    chunks(field, "his chunks in mine", denied, "a", Some(&grant), &theirs, "")?;
    chunks(field, "his chunks as of his image", denied, "a", Some(&grant), &theirs, &manifest)?;
    chunks(field, "my chunks as of his image", denied, "a", Some(&grant), &mine, &manifest)?;
    chunks(field, "his chunks in the default project", denied, "", Some(&grant), &theirs, "")?;
    let mixed = [mine.clone(), theirs[..1].to_vec()].concat();
    chunks(field, "one of his among mine", denied, "a", Some(&grant), &mixed, "")?;

    let none = Code::Unauthenticated;
    let own = Grant::decode(&*grant.payload)?;
    let wanted = Grant {
        project: "b".to_owned(),
        manifest_digest: manifest,
        map: record.map.digest.as_bytes().to_vec(),
        ..own
    };
    let key = SigningKey::from_bytes(&[7; 32]);
    let mut signed_by_himself = sign(&key, Domain::Grant, wanted.encode_to_vec());
    let mut forged = vec![signed_by_himself.clone()];
    // Under the fetcher's name; with a signature that is good for something else; with things that the fetcher signed.
    signed_by_himself.key_id = grant.key_id.clone();
    forged.push(signed_by_himself);
    forged.push(Signed { payload: wanted.encode_to_vec(), ..grant.clone() });
    forged.extend(field.own.resolved.record.clone());
    forged.extend(field.own.resolved.resolution.clone());
    forged.push(Signed::default());
    chunks(field, "no grant", none, "b", None, &theirs, "")?;
    for forged in forged {
        chunks(field, "a forged grant", none, "b", Some(&forged), &theirs, "")?;
    }
    for (project, kind, digest) in [
        ("a", Kind::Tree, record.tree.digest),
        ("b", Kind::Tree, record.tree.digest),
        ("a", Kind::Map, record.map.digest),
        ("b", Kind::Map, record.map.digest),
        // His map's name, and the tree of that name.
        ("a", Kind::Tree, record.map.digest),
    ] {
        attempts += 1;
        field.refused(
            "his tree or map",
            &[denied],
            index_read(field.content.clone(), project, &grant, kind, digest),
        )?;
    }
    Ok(attempts)
}

/// Of the fetcher, as if he were let read the image, or nearly; those that are refused as such.
fn as_a_reader(field: &mut Field) -> anyhow::Result<usize> {
    let none = [Code::Unauthenticated];
    let by_tag = field.prey.reference.clone();
    let by_digest = format!("{}@{}", by_tag.trim_end_matches(":v1"), field.prey.record.manifest_digest);
    let grant = field.own.grant()?;
    let mut attempts = 0;
    for project in ["a", "b"] {
        for reference in [&by_tag, &by_digest] {
            for credential in [None, password(WRONG)] {
                let request = ResolveRequest { credential, ..field.asked_for(project, reference) };
                field.resolve("his image without his credential", &none, request)?;
                attempts += 1;
            }
            let request = InspectRequest {
                project: project.to_owned(),
                reference: reference.clone(),
                plain_http: true,
                ..InspectRequest::default()
            };
            field.ask("what is known of it", &none, request)?;
            attempts += 1;
        }
    }
    // A part of it, under a grant that is for another image.
    for project in ["a", "b"] {
        let part =
            ResolveRequest { layers: 1, grant: Some(grant.clone()), ..field.asked_for(project, &by_tag) };
        field.resolve("a part of his image under my grant", &none, part)?;
        attempts += 1;
    }
    let own = field.own.reference.clone();
    let part = ResolveRequest { layers: 1, grant: Some(grant.clone()), ..field.asked_for("a", &own) };
    let resolved = field.runtime.block_on(resolve(&field.bus, part))?;
    let record = ImageRecord::decode(&resolved.record.context("a record")?.payload)?;
    ensure!(
        record.layers == field.own.record.layers[..1],
        "a grant opens another image than its own: {record:?}"
    );

    // Renewal and replay.
    let denied = [Code::PermissionDenied];
    let wanted = Grant { project: "b".to_owned(), ..Grant::decode(&*grant.payload)? };
    let changed = Signed { payload: wanted.encode_to_vec(), ..grant.clone() };
    for forged in [changed, field.own.resolved.record.clone().unwrap_or_default(), Signed::default()] {
        field.ask(
            "a grant that nobody gave, renewed",
            &denied,
            RenewRequest { grant: Some(forged), ..RenewRequest::default() },
        )?;
        attempts += 1;
    }
    let renewed = field.runtime.block_on(
        field.bus.call(RenewRequest { grant: Some(grant.clone()), ..RenewRequest::default() }, PATIENCE),
    )?;
    let (before, after) =
        (Grant::decode(&*grant.payload)?, Grant::decode(&*renewed.grant.context("a grant")?.payload)?);
    let same = Grant { expires_unix: after.expires_unix, ..before };
    ensure!(after == same, "a renewed grant is another: {after:?}");
    Ok(attempts)
}

/// With a registry that says whatever he has it say; those that cost the fetcher an import in vain.
fn with_a_registry_of_his_own(field: &mut Field) -> anyhow::Result<usize> {
    let known = tars(10).map(|tar| ClaimedLayer::known(&tar));
    let manifest = field.thief.publish("x", "same", &known);
    field.thief.publish("x", "one", &[ClaimedLayer::honest(&tars(30)[0]), known[1].clone()]);
    // A blob of his own, whose config says that it unpacks to the victim's.
    let claimed = ClaimedLayer { diff_id: known[0].diff_id.clone(), ..ClaimedLayer::honest(&tars(40)[0]) };
    field.thief.publish("x", "claimed", &[claimed]);
    let codes = [Code::NotFound, Code::DataLoss];
    let mut attempts = 0;
    for project in ["a", "b"] {
        for name in ["x:same", "x:one", "x:claimed", &format!("x@{manifest}")] {
            let reference = field.thief.reference(name);
            let request = field.asked_for(project, &reference);
            field.resolve("layers that he says he has", &codes, request)?;
            attempts += 1;
        }
        let reference = field.thief.reference("x:same");
        let request = InspectRequest {
            project: project.to_owned(),
            reference,
            plain_http: true,
            ..InspectRequest::default()
        };
        let told = field.runtime.block_on(field.bus.call(request, PATIENCE))?;
        ensure!(
            !told.imported && told.image.is_none() && told.layers.iter().all(|layer| !layer.known),
            "{told:?}"
        );
        field.heard.push(format!("{told:?}"));
    }
    ensure!(
        field.thief.count("HEAD", "/blobs/") + field.thief.count("GET", "/blobs/") > 0,
        "it was never asked"
    );
    Ok(attempts)
}

/// With names that lead elsewhere, or would.
fn with_names(field: &mut Field) -> anyhow::Result<()> {
    let (manifest, grant) = (field.prey.record.manifest_digest.clone(), field.own.grant()?);
    let (bad, chunks) = ([Code::InvalidArgument], field.prey.chunks.clone());
    for project in ["../b", "a/../b", "b/", "B", "b\0", " b", "b ", "..", &"b".repeat(64)] {
        let request = field.asked_for(project, &field.own.reference.clone());
        field.resolve("a project's name", &bad, request)?;
        field.ask("a project's name", &bad, ListRequest { project: project.to_owned() })?;
        let read = chunks_read(field.content.clone(), project, Some(&grant), &chunks, "");
        field.refused("a project's name", &bad, read)?;
    }
    let mine = |manifest_digest: &str| (String::from("a"), manifest_digest.to_owned());
    let absent = [Code::NotFound];
    let (project, image) = mine(&manifest);
    field.ask("his image removed from mine", &absent, RemoveRequest { project, image, force: true })?;
    let (project, manifest_digest) = mine(&manifest);
    field.ask(
        "his image repaired in mine",
        &[Code::NotFound, Code::Internal],
        RepairRequest { project, manifest_digest },
    )?;
    let (project, manifest_digest) = mine(&manifest);
    let profile = image::Profile::default().encode()?;
    field.ask(
        "a start of his image in mine",
        &absent,
        ReportRequest { project, manifest_digest, profile },
    )?;
    for ticket in ["", "0", &"0".repeat(32)] {
        let follow = FollowRequest { ticket: ticket.to_owned(), ..FollowRequest::default() };
        field.ask("somebody's ticket", &[Code::Unavailable], follow)?;
    }
    for reference in ["169.254.169.254/latest:v1", "registry.invalid:80/x:1", "0x7f.1:1/x"] {
        let request = field.asked_for("a", reference);
        field.resolve(
            "what only the fetcher reaches",
            &[Code::InvalidArgument, Code::Unavailable],
            request,
        )?;
    }
    let listed = field.runtime.block_on(field.bus.call(ListRequest { project: "a".to_owned() }, PATIENCE))?;
    field.heard.push(format!("{listed:?}"));
    Ok(())
}

fn rises(port: u16, name: &str, before: f64, by: usize) -> anyhow::Result<()> {
    let after = metrics::sum(port, name)?;
    ensure!(after - before >= by as f64, "{name}: {} attempts were counted, of {by}", after - before);
    Ok(())
}

#[test]
fn with_all_of_one_project_nothing_of_another_is_had() -> anyhow::Result<()> {
    let mut field = Field::start()?;
    let (cache, fetcher) = (field.cache_admin, field.fetcher_admin);
    let (refused, failed) = ("sluice_fetcher_refused_total", "sluice_fetcher_import_failures_total");

    let before = metrics::sum(cache, "sluice_cache_refused_total")?;
    let attempts = at_the_cache(&mut field)?;
    rises(cache, "sluice_cache_refused_total", before, attempts)?;

    let before = metrics::sum(fetcher, refused)?;
    let attempts = as_a_reader(&mut field)?;
    rises(fetcher, refused, before, attempts)?;

    let before = metrics::sum(fetcher, failed)?;
    let attempts = with_a_registry_of_his_own(&mut field)?;
    rises(fetcher, failed, before, attempts)?;

    with_names(&mut field)?;

    // What he was told names nothing of the victim's but what he named himself.
    let named = |line: &&String| {
        line.contains(WORD)
            && !line.starts_with("his image")
            && !line.starts_with("what is known")
            && !line.starts_with("a part")
    };
    let told: Vec<&String> = field.heard.iter().filter(named).collect();
    ensure!(told.is_empty(), "a name was told: {told:?}");

    // The victim's image is what it was.
    let grant = field.prey.grant()?;
    let read = chunks_read(field.content.clone(), "b", Some(&grant), &field.prey.chunks, "");
    ensure!(field.runtime.block_on(read)? > 100_000, "the victim lost its image");
    no_secret_is_left(&field)
}

/// Logs, events, metrics, state and store: all that was written, and all that was answered.
fn no_secret_is_left(field: &Field) -> anyhow::Result<()> {
    let basic =
        |password: &str| base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
    let mut told = field.heard.clone();
    for port in [field.fetcher_admin, field.cache_admin] {
        told.push(metrics::get(port, "/metrics")?.1);
    }
    told.extend([field.backend.fetcher.server.log(), field.backend.cache.server.log()]);
    for secret in [PASSWORD.to_owned(), basic(PASSWORD), WRONG.to_owned(), basic(WRONG)] {
        let files = files_with(&field.scratch.path(""), secret.as_bytes())?;
        ensure!(files.is_empty(), "a password stands in {files:?}");
        ensure!(told.iter().all(|told| !told.contains(&secret)), "a password was told");
    }
    let key = std::fs::read(field.scratch.state().join("fetcher.key"))?;
    let files = files_with(&field.scratch.path(""), &key)?;
    ensure!(files.len() == 1, "the signing key stands in {files:?}");
    ensure!(!field.private.log().contains(WRONG), "the registry's own log holds what it was sent");
    Ok(())
}
