//! What a registry once showed to a node is not the node's for ever: a renewal asks it again, and a registry that is away ends nothing at once.

use std::time::Duration;

use prost::Message as _;
use proto::credential::{Basic, Kind};
use proto::{Credential, Grant, Refusal, RenewRequest, ResolveRequest, Signed};
use testkit::registry::{PASSWORD, USER};
use testkit::{ImageSpec, Registry};
use tonic::{Code, Status};

use crate::harness::{DEADLINE, Harness, layer};

/// Grants are as old as this at least when they are renewed here.
const RECHECK: Duration = Duration::from_secs(1);

struct Field {
    harness: Harness,
    registry: Registry,
    reference: String,
    grant: Signed,
}

fn login(password: &str) -> Option<Credential> {
    let basic = Basic { username: USER.to_owned(), password: password.to_owned() };
    Some(Credential { kind: Some(Kind::Basic(basic)) })
}

fn said(grant: &Signed) -> Grant {
    Grant::decode(&*grant.payload).unwrap()
}

impl Field {
    /// A node that was granted an image of a private registry.
    async fn start(grace: Duration) -> Field {
        let harness = Harness::start_with(|config| {
            (config.grant_recheck, config.grant_recheck_grace) = (RECHECK, grace);
        })
        .await;
        let registry = Registry::start_private().unwrap();
        let mut layout = harness.layout();
        layout.image("v1", &ImageSpec::new([layer(1), layer(2)])).unwrap();
        let reference = registry.push(&layout.reference("v1"), "team/app:v1").unwrap();
        let request =
            ResolveRequest { plain_http: true, credential: login(PASSWORD), ..harness.request(&reference) };
        let grant = harness.resolve(request).await.unwrap().0.grant.unwrap();
        assert_eq!(said(&grant).repository, reference.strip_suffix(":v1").unwrap());
        Field { harness, registry, reference, grant }
    }

    async fn renew(&self, reference: &str, credential: Option<Credential>) -> Result<Signed, Status> {
        // The registry's word is old then.
        tokio::time::sleep(2 * RECHECK).await;
        let image = ResolveRequest {
            reference: reference.to_owned(),
            plain_http: true,
            credential,
            ..ResolveRequest::default()
        };
        let grant = Some(self.grant.clone());
        let request = RenewRequest { grant, image: Some(image), ..RenewRequest::default() };
        Ok(self.harness.bus.call(request, DEADLINE).await?.grant.unwrap())
    }

    async fn renew_as(&self, credential: Option<Credential>) -> Result<Signed, Status> {
        self.renew(&self.reference, credential).await
    }

    /// How often the image's manifest was asked for by its digest.
    fn asked(&self) -> usize {
        let manifest = said(&self.grant).manifest_digest;
        let line = format!("\"GET /v2/team/app/manifests/{manifest}");
        self.registry.log().matches(&line).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_goes_on_while_the_registry_shows_the_image_and_ends_with_the_access() {
    let mut field = Field::start(Duration::from_secs(3_600)).await;
    let (before, asked) = (said(&field.grant), field.asked());
    let renewed = said(&field.renew_as(login(PASSWORD)).await.unwrap());
    assert!(renewed.shown_unix > before.shown_unix, "{renewed:?} {before:?}");
    assert!(field.asked() > asked, "{}", field.registry.log());
    let same = (before.repository.clone(), before.manifest_digest, before.map);
    assert_eq!((renewed.repository, renewed.manifest_digest, renewed.map), same);

    // A node that has no credential is not one whose credential was refused.
    let unproven = said(&field.renew_as(None).await.unwrap());
    assert_eq!(unproven.shown_unix, before.shown_unix, "nothing began anew");
    assert!(unproven.expires_unix >= before.expires_unix);
    let refused = field.renew_as(login("wr0ng")).await.unwrap_err();
    assert_eq!(Refusal::of(&refused), Some(Refusal::Denied), "{refused}");
    assert!(!refused.message().contains("wr0ng"), "{refused}");
    // A repository of his own, which would show anything.
    let other = field.registry.reference("thief/app:v1");
    let refused = field.renew(&other, login(PASSWORD)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");

    field.registry.lock_out().unwrap();
    let refused = field.renew_as(login(PASSWORD)).await.unwrap_err();
    assert_eq!((refused.code(), Refusal::of(&refused)), (Code::PermissionDenied, Some(Refusal::Denied)));
    assert!(refused.message().contains("no longer"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_ends_a_grant_only_after_the_grace() {
    let mut field = Field::start(Duration::from_secs(3_600)).await;
    field.registry.kill().unwrap();
    let renewed = said(&field.renew_as(login(PASSWORD)).await.unwrap());
    assert_eq!(renewed.shown_unix, said(&field.grant).shown_unix);
    field.harness.config.grant_recheck_grace = Duration::ZERO;
    field.harness.restart().await;
    let refused = field.renew_as(login(PASSWORD)).await.unwrap_err();
    assert_eq!(Refusal::of(&refused), Some(Refusal::Denied), "{refused}");
    assert!(refused.message().contains("fetcher.grant_recheck"), "{refused}");
    field.harness.config.grant_recheck = Duration::ZERO;
    field.harness.restart().await;
    field.renew_as(None).await.expect("it is never asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_an_image_ends_with_the_access_to_the_whole() {
    let mut field = Field::start(Duration::from_secs(3_600)).await;
    let whole = field.grant.clone();
    let request = |layers, credential| ResolveRequest {
        layers,
        credential,
        grant: Some(whole.clone()),
        plain_http: true,
        ..field.harness.request(&field.reference)
    };
    let (one, all) = (request(1, login(PASSWORD)), request(2, login(PASSWORD)));
    tokio::time::sleep(2 * RECHECK).await;
    // Without a credential the registry says neither yes nor no.
    let part = field.harness.resolve(request(1, None)).await.unwrap().0.grant.unwrap();
    assert_ne!(said(&part).manifest_digest, said(&whole).manifest_digest);
    assert_eq!(said(&part).shown_unix, said(&whole).shown_unix, "nothing began anew");
    field.grant = part;
    field.renew_as(login(PASSWORD)).await.expect("its layers are shown");
    field.registry.lock_out().unwrap();
    let refused = field.renew_as(login(PASSWORD)).await.unwrap_err();
    assert_eq!(Refusal::of(&refused), Some(Refusal::Denied), "{refused}");
    // Nor is a part, or all of it as a part, to be had by the grant of before.
    for asked in [one, all] {
        let refused = field.harness.resolve(asked).await.unwrap_err();
        assert_eq!(Refusal::of(&refused), Some(Refusal::Denied), "{refused}");
    }
}
