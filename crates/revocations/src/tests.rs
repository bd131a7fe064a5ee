use std::collections::HashMap;

use ed25519_dalek::SigningKey;
use proto::signed::sign;

use super::*;

fn grant(node: &str, image: &str, epoch: u64) -> Grant {
    Grant {
        project: "p".to_owned(),
        node: node.to_owned(),
        manifest_digest: image.to_owned(),
        epoch,
        ..Grant::default()
    }
}

fn entry(scope: Scope, project: &str, name: &str) -> Revocation {
    Revocation {
        scope: scope.into(),
        project: project.to_owned(),
        name: name.to_owned(),
        ..Revocation::default()
    }
}

struct Site {
    _folder: tempfile::TempDir,
    store: Store,
    bus: Bus,
    key: SigningKey,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap();
        let key = SigningKey::from_bytes(&[1; 32]);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        Site { _folder: folder, store, bus: Bus::in_process(), key, tasks, shutdown }
    }

    async fn follow(&self) -> Revocations {
        self.follow_as(Role::Fetcher).await
    }

    async fn follow_as(&self, role: Role) -> Revocations {
        let known = (self.store.clone(), vec![self.key.verifying_key()].into());
        Revocations::follow(known, self.bus.clone(), role, &self.tasks, self.shutdown.clone()).await
    }

    async fn keep(&self, at: &Revocations, list: List) {
        at.keep(&sign(&self.key, Domain::Revocations, list.encode_to_vec()), &self.bus).await.unwrap();
    }

    async fn revoke(&self, at: &Revocations, entry: Revocation, undo: bool) {
        let list = at.changed(entry, undo, 1_000, 0).await.unwrap();
        at.keep(&sign(&self.key, Domain::Revocations, list.encode_to_vec()), &self.bus).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_revoked_counts_no_more_here_and_elsewhere() {
    let site = Site::new();
    let (here, there) = (site.follow().await, site.follow().await);
    here.admit(&grant("n", "i", 0)).unwrap();
    site.revoke(&here, entry(Scope::Image, "p", "i"), false).await;
    assert!(matches!(here.admit(&grant("n", "i", 0)), Err(Refused::Image(_))));
    here.admit(&grant("n", "other", 0)).unwrap();
    here.admit(&grant("n", "i", here.epoch())).unwrap();
    // Told; and whoever comes later reads it.
    while there.epoch() < here.epoch() {
        tokio::task::yield_now().await;
    }
    assert!(there.admit(&grant("n", "i", 0)).is_err());
    site.revoke(&there, entry(Scope::Project, "p", ""), false).await;
    let later = site.follow().await;
    assert!(matches!(later.admit(&grant("n", "other", 1)), Err(Refused::Project(_))));
    later.admit(&grant("n", "other", 2)).unwrap();
    site.shutdown.cancel();
}

#[tokio::test]
async fn a_node_is_out_until_that_is_undone() {
    let site = Site::new();
    let revocations = site.follow().await;
    site.revoke(&revocations, entry(Scope::Node, "", "n"), false).await;
    assert!(matches!(revocations.admit(&grant("n", "i", 99)), Err(Refused::Node(_))));
    assert!(revocations.admit_node("q", "n").is_err());
    revocations.admit_node("p", "m").unwrap();
    site.revoke(&revocations, entry(Scope::Node, "", "n"), true).await;
    revocations.admit_node("q", "n").unwrap();
    for wrong in
        [entry(Scope::Unspecified, "p", "n"), entry(Scope::Image, "", "i"), entry(Scope::Project, "", "")]
    {
        assert!(revocations.changed(wrong, false, 0, 0).await.is_err());
    }
    site.shutdown.cancel();
}

#[tokio::test]
async fn only_a_fetcher_revokes_and_nobody_puts_an_old_list_back() {
    let site = Site::new();
    let revocations = site.follow().await;
    let list = revocations.changed(entry(Scope::Node, "", "n"), false, 1, 0).await.unwrap();
    let forged = sign(&SigningKey::from_bytes(&[2; 32]), Domain::Revocations, list.encode_to_vec());
    assert!(revocations.keep(&forged, &site.bus).await.is_err());
    revocations.admit_node("p", "n").unwrap();
    site.revoke(&revocations, entry(Scope::Node, "", "n"), false).await;
    let old = sign(&site.key, Domain::Revocations, List::default().encode_to_vec());
    revocations.shared.believe(&old).unwrap();
    assert!(revocations.admit_node("p", "n").is_err());
    site.shutdown.cancel();
}

/// Whoever can write to the store puts back what stood there before: for those who start then, nothing counts until an operator says so.
#[tokio::test]
async fn an_older_list_in_the_store_does_not_count_after_a_restart() {
    let site = Site::new();
    let fetcher = site.follow().await;
    site.revoke(&fetcher, entry(Scope::Node, "", "first"), false).await;
    let before = site.store.revocations().await.unwrap().unwrap();
    site.revoke(&fetcher, entry(Scope::Node, "", "second"), false).await;
    site.store.put_revocations(before).await.unwrap();

    for role in [Role::Cache, Role::Fetcher] {
        let restarted = site.follow_as(role).await;
        let refused = restarted.admit(&grant("any", "i", 9)).unwrap_err();
        assert_eq!(refused, Refused::Older(1, 2), "{role:?}");
        assert!((restarted.probe())().await.unwrap_err().contains("sluice revoke restored"));
    }
    // No list at all is older, too.
    site.store.put_revocations(Signed::default().encode_to_vec().into()).await.unwrap();
    assert!(site.follow_as(Role::Cache).await.admit(&grant("any", "i", 9)).is_err());
    // Who has not restarted goes on, and what is revoked next repairs the store.
    fetcher.admit_node("p", "any").unwrap();
    assert!(fetcher.admit_node("p", "second").is_err());
    assert!(fetcher.restored().await.is_err(), "what is in the store now is nobody's");
    let list = List { epoch: 1, ..List::default() };
    let signed = sign(&site.key, Domain::Revocations, list.encode_to_vec());
    site.store.put_revocations(signed.encode_to_vec().into()).await.unwrap();
    let restarted = site.follow().await;
    assert!(restarted.changed(entry(Scope::Node, "", "third"), false, 1, 0).await.is_err());
    let accepted = restarted.restored().await.unwrap();
    assert_eq!(accepted.epoch, 3);
    site.keep(&restarted, accepted).await;
    restarted.admit_node("p", "second").unwrap();
    site.follow_as(Role::Cache).await.admit(&grant("any", "i", 9)).unwrap();
    assert!(restarted.restored().await.is_err(), "it is the newest one now");
    site.shutdown.cancel();
}
