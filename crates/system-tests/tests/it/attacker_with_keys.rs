//! Node `thief` of project `a`, with an identity that counts, and with everything that was ever said to or by node `victim` of project `b`:
//! names, digests, requests, answers, grants, tickets. It gets none of b's bytes, hears nothing, is nobody else, and each attempt is refused
//! and counted. The mesh is one of `sluice keys`, its NATS server has the configuration that they come with.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use bus::{Bus, Sealer};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use image::{Digest, ImageRecord, Map};
use prost::Message as _;
use proto::content_client::ContentClient;
use proto::credential::{Basic, Kind as Shown};
use proto::index_request::Kind;
use proto::resolve_reply::Answer;
use proto::signed::TrustedKeys;
use proto::subjects::{CONVERSATION, TOLD};
use proto::{
    Call, ChunksRequest, Credential, FollowRequest, Grant, ImportTicket, IndexRequest, RenewRequest,
    ReportRequest, ResolveRequest, Resolved, Role, Signed, speaker,
};
use store::{Index, Store, verify};
use system_tests::raw::Raw;
use system_tests::secured::{nats_config, tls_config};
use system_tests::services::Service;
use system_tests::{Scratch, Secured, metrics, noise};
use testkit::lying::{ClaimedLayer, LyingRegistry};
use testkit::registry::{PASSWORD, USER};
use testkit::{Compression, ImageSpec, LayoutWriter, Registry, Tarball, port};
use tls::Tls;
use tokio::runtime::Runtime;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::credentials::files_with;

const PATIENCE: Duration = Duration::from_secs(60);
/// In the name of the victim's image, and in no digest.
const WORD: &str = "zq-vault";
/// A renewal asks the registry when its word is older.
const RECHECK: Duration = Duration::from_secs(1);

/// A node, as itself.
struct Node {
    name: &'static str,
    project: &'static str,
    folder: PathBuf,
    bus: Bus,
    tls: Tls,
    content: ContentClient<Channel>,
    reference: String,
    /// As it left the node.
    asked: ResolveRequest,
    ticket: ImportTicket,
    resolved: Resolved,
    record: ImageRecord,
    chunks: Vec<Digest>,
}

struct Field {
    runtime: Runtime,
    scratch: Scratch,
    mesh: Secured,
    fetcher: Service,
    cache: Service,
    fetcher_admin: u16,
    cache_admin: u16,
    cache_port: u16,
    private: Registry,
    _public: Registry,
    liar: LyingRegistry,
    thief: Node,
    victim: Node,
    raw: Raw,
    /// What was answered to the thief.
    heard: Vec<String>,
}

fn tars(seed: u64) -> [Vec<u8>; 2] {
    [seed, seed + 1].map(|seed| Tarball::new().file(&format!("file-{seed}"), &noise(seed, 200_000)).finish())
}

fn spec(seed: u64) -> ImageSpec {
    ImageSpec {
        layers: tars(seed).into_iter().map(|tar| (tar, Some(Compression::None))).collect(),
        config: None,
    }
}

fn login() -> Option<Credential> {
    let basic = Basic { username: USER.to_owned(), password: PASSWORD.to_owned() };
    Some(Credential { kind: Some(Shown::Basic(basic)) })
}

fn request(project: &str, node: &str, reference: &str) -> ResolveRequest {
    ResolveRequest {
        project: project.to_owned(),
        node: node.to_owned(),
        reference: reference.to_owned(),
        plain_http: true,
        ..ResolveRequest::default()
    }
}

/// Asks to the end; also the ticket, when the image was imported on the way.
async fn resolve(bus: &Bus, request: &ResolveRequest) -> Result<(Resolved, Option<ImportTicket>), Status> {
    let mut ticket = None;
    let mut reply = bus.call(request.clone(), PATIENCE).await?;
    loop {
        match reply.answer {
            Some(Answer::Resolved(resolved)) => return Ok((resolved, ticket)),
            Some(Answer::Importing(importing)) => {
                let follow = follow(&importing, &request.project, &request.node);
                reply = bus.call_instance(&importing.instance, follow, PATIENCE).await?;
                ticket = Some(importing);
            }
            None => return Err(Status::internal("no answer")),
        }
    }
}

fn follow(ticket: &ImportTicket, project: &str, node: &str) -> FollowRequest {
    FollowRequest {
        ticket: ticket.ticket.clone(),
        wait_ms: 1000,
        seen_revision: u64::MAX,
        project: project.to_owned(),
        node: node.to_owned(),
    }
}

impl Node {
    async fn start(
        mesh: &mut Secured,
        (project, name): (&'static str, &'static str),
        reference: String,
        credential: Option<Credential>,
        cache_port: u16,
        store: &Store,
    ) -> anyhow::Result<Node> {
        let folder = mesh.node(name, project)?;
        let bus = Bus::connect(&nats_config(&folder)?).await?;
        let tls = tls_config(&folder).open()?;
        let content = content(cache_port, &tls)?;
        let key = TrustedKeys::parse(&[mesh.set.trusted_key()?])?;
        let asked = ResolveRequest {
            credential,
            node_key: tls.own().context("a certificate")?.thumbprint.to_vec(),
            nonce: vec![1; 16],
            ..request(project, name, &reference)
        };
        let asked = Sealer::new(bus.clone(), key).resolve(asked).await?;
        ensure!(asked.credential.is_none(), "the credential is sealed");
        let (resolved, ticket) = resolve(&bus, &asked).await?;
        let record = ImageRecord::decode(&resolved.record.as_ref().context("a record")?.payload)?;
        let stored = store.project(project)?.index(Index::Map, record.map.digest).await?;
        let map = Map::decode(&verify::open_index(&record.map.digest, &stored)?)?;
        let chunks = map.chunks.iter().map(|chunk| chunk.digest).collect();
        let ticket = ticket.context("it was imported")?;
        Ok(Node {
            name,
            project,
            folder,
            bus,
            tls,
            content,
            reference,
            asked,
            ticket,
            resolved,
            record,
            chunks,
        })
    }

    fn grant(&self) -> anyhow::Result<Signed> {
        self.resolved.grant.clone().context("a grant")
    }

    /// The subject on which it asks.
    fn subject<C: Call>(&self) -> String {
        speaker::subject(C::SUBJECT, self.project, self.name)
    }
}

fn content(port: u16, tls: &Tls) -> anyhow::Result<ContentClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?;
    Ok(ContentClient::new(endpoint.connect_with_connector_lazy(tls.connector("cache"))))
}

impl Field {
    fn start() -> anyhow::Result<Field> {
        let (scratch, runtime) = (Scratch::new()?, Runtime::new()?);
        let (private, public) = (Registry::start_private()?, Registry::start()?);
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("prey", &spec(10))?;
        layout.image("own", &spec(20))?;
        let prey = private.push(&layout.reference("prey"), &format!("team/{WORD}:v1"))?;
        let own = public.push(&layout.reference("own"), "mine:v1")?;
        std::fs::remove_dir_all(scratch.path("layout"))?;
        let liar = LyingRegistry::start(true)?;
        let mut mesh = Secured::start(&scratch)?;
        let (fetcher_admin, cache_admin, cache_port) = (port::free()?, port::free()?, port::free()?);
        let url = format!("store.url={}", scratch.path("mesh-store").display());
        let fetcher = [
            url.clone(),
            format!("lifecycle.admin=127.0.0.1:{fetcher_admin}"),
            format!("fetcher.grant_recheck={}s", RECHECK.as_secs()),
        ];
        let fetcher = mesh.service(&scratch, "fetcher", &fetcher)?;
        let cache = [
            url,
            format!("lifecycle.admin=127.0.0.1:{cache_admin}"),
            format!("cache.listen=127.0.0.1:{cache_port}"),
        ];
        let mut cache = mesh.service(&scratch, "cache", &cache)?;
        cache.server.wait_for_port("cache", cache_port)?;
        let store = Store::open(&scratch.path("mesh-store").display().to_string(), &Default::default())?;
        let (thief, victim, raw) = runtime.block_on(async {
            let victim = ("b", "victim");
            let victim = Node::start(&mut mesh, victim, prey, login(), cache_port, &store).await?;
            let thief = Node::start(&mut mesh, ("a", "thief"), own, None, cache_port, &store).await?;
            let raw = Raw::connect(&thief.folder).await?;
            anyhow::Ok((thief, victim, raw))
        })?;
        let field = Field {
            runtime,
            scratch,
            mesh,
            fetcher,
            cache,
            fetcher_admin,
            cache_admin,
            cache_port,
            private,
            _public: public,
            liar,
            thief,
            victim,
            raw,
            heard: Vec::new(),
        };
        field.the_victim_reads()?;
        Ok(field)
    }

    /// Who may read it can, so that what is refused is refused for want of the right, and not of the thing.
    fn the_victim_reads(&self) -> anyhow::Result<()> {
        let (victim, grant) = (&self.victim, self.victim.grant()?);
        let read = chunks_read(victim.content.clone(), victim.project, Some(&grant), &victim.chunks);
        ensure!(self.runtime.block_on(read)? > 100_000, "the victim cannot read its own image");
        Ok(())
    }

    fn note<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        codes: &[Code],
        answer: Result<T, Status>,
    ) -> anyhow::Result<()> {
        let status = match answer {
            Ok(got) => bail!("{what}: it got {got:?}"),
            Err(status) => status,
        };
        ensure!(codes.contains(&status.code()), "{what}: {status:?}");
        self.heard.push(format!("{what}: {status:?}"));
        Ok(())
    }

    /// Bytes of a request on one of the subjects that the thief may ask on.
    fn ask_raw<C: Call>(&mut self, what: &str, codes: &[Code], request: &C) -> anyhow::Result<()> {
        let subject = self.thief.subject::<C>();
        let answer = self.runtime.block_on(self.raw.ask(&subject, Bytes::from(request.encode_to_vec())))?;
        self.note(what, codes, answer)
    }

    fn rises(&self, port: u16, name: &str, before: f64, by: usize) -> anyhow::Result<()> {
        let after = metrics::sum(port, name)?;
        ensure!(after - before >= by as f64, "{name}: {} attempts were counted, of {by}", after - before);
        Ok(())
    }
}

async fn chunks_read(
    mut content: ContentClient<Channel>,
    project: &str,
    grant: Option<&Signed>,
    digests: &[Digest],
) -> Result<usize, Status> {
    let request = ChunksRequest {
        project: project.to_owned(),
        digests: digests.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
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

/// What the thief would like to say on NATS: as others, as a service, to JetStream, into others' inboxes.
fn subjects_to_say(field: &Field) -> Vec<String> {
    let (thief, victim) = (&field.thief, &field.victim);
    let mut all: Vec<String> = Vec::new();
    let names = [(victim.project, victim.name), (thief.project, victim.name), (victim.project, thief.name)];
    for asked in CONVERSATION {
        all.extend([asked.subject.to_owned(), format!("{}.all", asked.subject)]);
        all.extend(names.map(|(project, node)| speaker::subject(asked.subject, project, node)));
        if !asked.by.contains(&Role::Frontend) {
            all.push(speaker::subject(asked.subject, thief.project, thief.name));
        }
    }
    for told in TOLD {
        let subject = told.subject.replace('*', "streaming");
        all.push(subject.clone());
        all.extend(names.map(|(project, node)| speaker::subject(&subject, project, node)));
    }
    for role in Role::ALL {
        all.push(format!("{}.UOTHER.1", speaker::inbox(role)));
    }
    // Leases of imports, limits and counters of quotas, events, and whatever else somebody may keep.
    let streams = [
        "KV_sluice-leases",
        "KV_sluice-quota-limits",
        "SLUICE_EVENTS",
        "sluice-counters-quota-minutes",
        "sluice-counters-quota-days",
        "OBJ_mine",
    ];
    for stream in streams {
        let verbs = [
            "STREAM.INFO",
            "STREAM.CREATE",
            "STREAM.UPDATE",
            "STREAM.DELETE",
            "STREAM.PURGE",
            "STREAM.MSG.GET",
            "STREAM.MSG.DELETE",
            "STREAM.SNAPSHOT",
            "STREAM.RESTORE",
            "DIRECT.GET",
            "CONSUMER.CREATE",
            "CONSUMER.NAMES",
            "CONSUMER.LIST",
        ];
        all.extend(verbs.map(|verb| format!("$JS.API.{verb}.{stream}")));
        all.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.log"));
        all.push(format!("$JS.ACK.{stream}.log.1.1.1.1.1"));
    }
    let others = [
        "$JS.API.INFO",
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.NAMES",
        "$KV.sluice-leases.import",
        "$KV.sluice-quota-limits.a",
        "$O.mine.M.x",
        "sluice.v1.counter.quota-minutes.a",
        "sluice.v1.counter.quota-days.a",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
        "$SRV.PING",
    ];
    all.extend(others.map(str::to_owned));
    all.sort();
    all.dedup();
    all
}

/// What he would like to hear.
fn subjects_to_hear(field: &Field) -> Vec<String> {
    let (thief, victim) = (&field.thief, &field.victim);
    let mut all: Vec<String> = Vec::new();
    for asked in CONVERSATION {
        all.extend([asked.subject.to_owned(), format!("{}.>", asked.subject)]);
        for (project, node) in [("*", "*"), (victim.project, victim.name), (thief.project, thief.name)] {
            all.push(speaker::subject(asked.subject, project, node));
        }
    }
    all.extend(TOLD.iter().map(|told| told.subject.to_owned()));
    for role in Role::ALL {
        all.extend([format!("{}.>", speaker::inbox(role)), format!("{}.*.*", speaker::inbox(role))]);
    }
    let others = [
        ">",
        "*.>",
        "sluice.>",
        "sluice.v1.>",
        "_INBOX.>",
        "$JS.>",
        "$KV.>",
        "$O.>",
        "$SYS.>",
        "$SRV.>",
        "$JS.EVENT.>",
        "sluice.v1.counter.>",
    ];
    all.extend(others.map(str::to_owned));
    all.sort();
    all.dedup();
    all
}

/// Each refused by the server, which says so in its log.
fn on_nats(field: &mut Field) -> anyhow::Result<()> {
    let (say, hear) = (subjects_to_say(field), subjects_to_hear(field));
    ensure!(say.len() > 150 && hear.len() > 100, "{} {}", say.len(), hear.len());
    let said = field.runtime.block_on(field.raw.published(&say))?;
    ensure!(said.is_empty(), "the server let it say {said:?}");
    let heard = field.runtime.block_on(field.raw.heard(&hear))?;
    ensure!(heard.is_empty(), "the server let it hear {heard:?}");
    let log = field.mesh.nats.log();
    let violations = log.lines().filter(|line| line.contains("Violation")).count();
    ensure!(violations >= say.len() + hear.len(), "{violations} of {} in the log", say.len() + hear.len());
    Ok(())
}

/// Where the answer is to go is the asker's own inbox; and what others are answered is not to be heard there.
fn on_reply_subjects(field: &mut Field) -> anyhow::Result<()> {
    let subject = field.thief.subject::<ResolveRequest>();
    let own = request(field.thief.project, field.thief.name, &field.thief.reference);
    let asked = Bytes::from(own.encode_to_vec());
    for reply in
        ["sluice.v1.fetcher.revocations", "$KV.sluice-leases.import", "sluice.v1.admin.fetcher.remove"]
    {
        field.runtime.block_on(field.raw.send(&subject, reply, asked.clone()))?;
    }
    let ignored =
        || field.fetcher.server.log().matches("ignored a request whose reply would be no reply").count();
    let begun = std::time::Instant::now();
    while ignored() < 3 {
        ensure!(begun.elapsed() < PATIENCE, "{} were ignored: {}", ignored(), field.fetcher.server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let heard = field.runtime.block_on(async {
        let mut inbox = field.raw.listen(&format!("{}.>", field.raw.inbox())).await?;
        // What the server had not yet brought of before.
        field.raw.ask(&subject, asked).await?.ok();
        while let Some(Some(_)) = inbox.next().now_or_never() {}
        for _ in 0..3 {
            resolve(&field.victim.bus, &field.victim.asked).await?;
        }
        // Behind all of it.
        field.raw.ask(&subject, Bytes::from(own.encode_to_vec())).await?.ok();
        let mut heard = 0;
        while let Some(Some(_)) = inbox.next().now_or_never() {
            heard += 1;
        }
        anyhow::Ok(heard)
    })?;
    ensure!(heard <= 2, "{heard} messages came to the thief's inbox");
    Ok(())
}

/// In another's name on his own subjects, what was captured included: all of it is refused before it is looked at, and counted as such.
fn as_another(field: &mut Field) -> anyhow::Result<()> {
    let before = metrics::sum(field.fetcher_admin, "sluice_bus_impostors_total")?;
    let denied = [Code::PermissionDenied];
    let (thief, victim) =
        ((field.thief.project, field.thief.name), (field.victim.project, field.victim.name));
    let asked = field.victim.asked.clone();
    field.ask_raw("a captured request, replayed", &denied, &asked)?;
    for (project, node) in [(victim.0, thief.1), (thief.0, victim.1), ("", thief.1), (thief.0, "")] {
        let reference = field.victim.reference.clone();
        field.ask_raw("his image in his name", &denied, &request(project, node, &reference))?;
    }
    let grant = field.victim.grant()?;
    let node_key = field.thief.asked.node_key.clone();
    let renew = RenewRequest { grant: Some(grant), node_key, image: Some(asked) };
    field.ask_raw("his grant, renewed for my key", &denied, &renew)?;
    let ticket = field.victim.ticket.clone();
    field.ask_raw("his ticket in his name", &denied, &follow(&ticket, victim.0, victim.1))?;
    let report = ReportRequest {
        project: victim.0.to_owned(),
        manifest_digest: field.victim.record.manifest_digest.clone(),
        profile: image::Profile::default().encode()?,
    };
    field.ask_raw("a start of his image", &denied, &report)?;
    field.rises(field.fetcher_admin, "sluice_bus_impostors_total", before, 8)
}

/// As himself, with what he knows of the other.
fn as_himself(field: &mut Field) -> anyhow::Result<()> {
    let refused = "sluice_fetcher_refused_total";
    let before = metrics::sum(field.fetcher_admin, refused)?;
    let (project, node) = (field.thief.project, field.thief.name);
    let (none, denied) = ([Code::Unauthenticated], [Code::PermissionDenied]);
    let by_tag = field.victim.reference.clone();
    let manifest = field.victim.record.manifest_digest.clone();
    let by_digest = format!("{}@{manifest}", by_tag.trim_end_matches(":v1"));
    for reference in [&by_tag, &by_digest] {
        field.ask_raw("his image", &none, &request(project, node, reference))?;
    }
    // The victim's sealed credential opens for the victim's own request alone.
    let sealed = field.victim.asked.sealed_credential.clone();
    ensure!(!sealed.is_empty(), "it was sealed");
    let stolen = ResolveRequest { sealed_credential: sealed.clone(), ..request(project, node, &by_tag) };
    field.ask_raw("his image with his sealed credential", &denied, &stolen)?;
    for (grant, codes) in [(field.thief.grant()?, &none), (field.victim.grant()?, &none)] {
        let part = ResolveRequest { layers: 1, grant: Some(grant), ..request(project, node, &by_tag) };
        field.ask_raw("a part of his image", codes, &part)?;
    }
    let ticket = field.victim.ticket.clone();
    field.ask_raw("his ticket", &denied, &follow(&ticket, project, node))?;

    // Renewals: of what was not given, and with a registry, a repository or a credential that the grant is not of.
    std::thread::sleep(2 * RECHECK);
    let own = field.thief.grant()?;
    let said = Grant::decode(&*own.payload)?;
    let wanted = [
        Grant { manifest_digest: manifest.clone(), ..said.clone() },
        Grant { repository: "127.0.0.1:1/x".to_owned(), shown_unix: u64::MAX, ..said.clone() },
    ];
    for wanted in wanted {
        let grant = Some(Signed { payload: wanted.encode_to_vec(), ..own.clone() });
        field.ask_raw("a changed grant", &denied, &RenewRequest { grant, ..RenewRequest::default() })?;
    }
    let grant = Some(own.clone());
    let elsewhere = request(project, node, &field.liar.reference("x:same"));
    let renew = RenewRequest { grant: grant.clone(), image: Some(elsewhere), ..RenewRequest::default() };
    field.ask_raw("my grant by a registry of mine", &[Code::InvalidArgument], &renew)?;
    let image = ResolveRequest { sealed_credential: sealed, ..request(project, node, "") };
    let renew = RenewRequest { grant, image: Some(image), ..RenewRequest::default() };
    field.ask_raw("my grant with his credential", &denied, &renew)?;
    field.rises(field.fetcher_admin, refused, before, 9)
}

/// By a registry that says whatever he has it say: known layers, known images.
fn by_claiming_layers(field: &mut Field) -> anyhow::Result<()> {
    let failed = "sluice_fetcher_import_failures_total";
    let before = metrics::sum(field.fetcher_admin, failed)?;
    let known = tars(10).map(|tar| ClaimedLayer::known(&tar));
    let manifest = field.liar.publish("x", "same", &known);
    field.liar.publish("x", "one", &[ClaimedLayer::honest(&tars(30)[0]), known[1].clone()]);
    for name in ["x:same", "x:one", &format!("x@{manifest}")] {
        let asked = request(field.thief.project, field.thief.name, &field.liar.reference(name));
        let answer = field.runtime.block_on(resolve(&field.thief.bus, &asked));
        field.note("layers that he says he has", &[Code::NotFound, Code::DataLoss], answer.map(drop))?;
    }
    field.rises(field.fetcher_admin, failed, before, 3)
}

/// Over TLS, with his own certificate and without one.
fn at_the_cache(field: &mut Field) -> anyhow::Result<()> {
    let refused = "sluice_cache_refused_total";
    let before = metrics::sum(field.cache_admin, refused)?;
    let (denied, none) = ([Code::PermissionDenied], [Code::Unauthenticated]);
    let (mine, theirs) = (field.thief.chunks.clone(), field.victim.chunks.clone());
    let (own, leaked) = (field.thief.grant()?, field.victim.grant()?);
    let mixed = [mine.clone(), theirs[..1].to_vec()].concat();
    let forged = Grant { project: "b".to_owned(), ..Grant::decode(&*own.payload)? };
    let forged = Signed { payload: forged.encode_to_vec(), ..own.clone() };
    let attempts = [
        ("his chunks under his grant", "b", Some(&leaked), &theirs, &denied),
        ("his chunks under my grant", "a", Some(&own), &theirs, &denied),
        ("his chunks under my grant in b", "b", Some(&own), &theirs, &denied),
        ("one of his among mine", "a", Some(&own), &mixed, &denied),
        ("a forged grant", "b", Some(&forged), &theirs, &none),
        ("a record as a grant", "b", field.victim.resolved.record.as_ref(), &theirs, &none),
        ("no grant", "b", None, &theirs, &none),
    ];
    let answers: Vec<_> = attempts
        .into_iter()
        .map(|(what, project, grant, digests, codes)| {
            let read = chunks_read(field.thief.content.clone(), project, grant, digests);
            (what, codes, field.runtime.block_on(read))
        })
        .collect();
    let mut counted = answers.len();
    for (what, codes, answer) in answers {
        field.note(what, codes, answer)?;
    }
    let record = field.victim.record.clone();
    for (project, grant) in [("a", &own), ("b", &own), ("b", &leaked)] {
        for (kind, digest) in [(Kind::Tree, record.tree.digest), (Kind::Map, record.map.digest)] {
            let read = index_read(field.thief.content.clone(), project, grant, kind, digest);
            let answer = field.runtime.block_on(read);
            field.note("his tree or map", &denied, answer)?;
            counted += 1;
        }
    }
    field.rises(field.cache_admin, refused, before, counted)?;
    // Without a certificate nobody is spoken to at all.
    let tls_refused = metrics::sum(field.cache_admin, "sluice_tls_refused_total")?;
    let authority = field.mesh.set.authority()?.fingerprint();
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", field.cache_port))?;
    let nobody = tls::Connector::pinned(authority, "cache");
    let read = field.runtime.block_on(async {
        let content = ContentClient::new(endpoint.connect_with_connector_lazy(nobody));
        chunks_read(content, "b", Some(&leaked), &theirs).await
    });
    ensure!(read.is_err(), "without a certificate it got {read:?}");
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{}", field.cache_port))?;
    let read = field.runtime.block_on(async {
        chunks_read(ContentClient::new(plain.connect_lazy()), "b", Some(&leaked), &theirs).await
    });
    ensure!(read.is_err(), "without TLS it got {read:?}");
    field.rises(field.cache_admin, "sluice_tls_refused_total", tls_refused, 1)
}

#[test]
fn a_node_of_one_project_gets_nothing_of_another_and_is_nobody_else() -> anyhow::Result<()> {
    let mut field = Field::start()?;
    on_nats(&mut field)?;
    on_reply_subjects(&mut field)?;
    as_another(&mut field)?;
    as_himself(&mut field)?;
    by_claiming_layers(&mut field)?;
    at_the_cache(&mut field)?;

    // What he was told names nothing of the victim's but what he named himself.
    let told: Vec<&String> = field
        .heard
        .iter()
        .filter(|line| line.contains(WORD) && !line.starts_with("his image") && !line.starts_with("a part"))
        .collect();
    ensure!(told.is_empty(), "a name was told: {told:?}");
    field.the_victim_reads()?;
    no_secret_is_left(&field)
}

/// In logs, metrics and the store, and in what was answered.
fn no_secret_is_left(field: &Field) -> anyhow::Result<()> {
    let mut told = field.heard.clone();
    for port in [field.fetcher_admin, field.cache_admin] {
        told.push(metrics::get(port, "/metrics")?.1);
    }
    told.extend([field.fetcher.server.log(), field.cache.server.log(), field.mesh.nats.log()]);
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    for secret in [PASSWORD, &encoded] {
        let files = files_with(&field.scratch.path(""), secret.as_bytes())?;
        ensure!(files.is_empty(), "a password stands in {files:?}");
        ensure!(told.iter().all(|told| !told.contains(secret)), "a password was told");
    }
    // Seeds stand in their own files and nowhere else.
    let seed = std::fs::read_to_string(field.victim.folder.join("nats.creds"))?;
    let seed = seed.lines().find(|line| line.starts_with("SU")).context("a seed")?;
    let files = files_with(&field.scratch.path(""), seed.as_bytes())?;
    ensure!(files.len() == 1 && told.iter().all(|told| !told.contains(seed)), "a seed stands in {files:?}");
    ensure!(field.victim.tls.is_on() && !field.private.log().contains(PASSWORD), "the registry's log");
    Ok(())
}
