//! The right to read an image's content: a grant, and a newer one in its place once it has expired.
//!
//! A grant may end at any moment, also between a pull and the first read, so what it is needed for never fails for that
//! alone: it is renewed before it is used when it has expired by this machine's clock, and when a replica says that it does not
//! count. Clocks differ: only the replica's counts, and a renewal that changed nothing by ours is not repeated for our clock.
//!
//! One renewal at a time, at most one in [`RENEWAL_PAUSE`], which goes on when nobody waits for it any more.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use prost::Message as _;
use proto::{Grant, Signed};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::metadata::BinaryMetadataValue;

/// Asks for a grant in place of one that does not count any more. Bounds itself.
pub(crate) type Renewer = Arc<dyn Fn(Signed) -> BoxFuture<'static, Result<Signed, Status>> + Send + Sync>;

/// How long reads wait for one renewal: a mesh that is away must not hold up who can read from the store. Later ones go on at once.
const RENEWAL_WAIT: Duration = Duration::from_secs(2);
/// From the end of one renewal that a read asked for to the next.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// Shared by all who read an image.
pub(super) struct Right {
    state: Mutex<State>,
    renewer: OnceLock<Renewer>,
}

struct State {
    grant: Signed,
    encoded: BinaryMetadataValue,
    under_way: Option<Renewal>,
    ended: Option<Instant>,
    /// A grant that had just been given has expired by this machine's clock.
    clock_is_ahead: bool,
}

#[derive(Clone)]
struct Renewal {
    outcome: Shared<BoxFuture<'static, Result<Signed, Status>>>,
    waited_until: Instant,
}

impl Right {
    pub(super) fn new(grant: Signed) -> Right {
        let encoded = encoded(&grant);
        let state = State { grant, encoded, under_way: None, ended: None, clock_is_ahead: false };
        Right { state: Mutex::new(state), renewer: OnceLock::new() }
    }

    /// From now on it can be renewed; only the first one counts.
    pub(super) fn renew_by(&self, renewer: Renewer) {
        let _ = self.renewer.set(renewer);
    }

    pub(super) fn grant(&self) -> Signed {
        self.state().grant.clone()
    }

    pub(super) fn replace(&self, grant: &Signed) {
        let mut state = self.state();
        (state.grant, state.encoded) = (grant.clone(), encoded(grant));
    }

    /// What to read under now; renewed before, if it has expired.
    pub(super) async fn to_use(self: &Arc<Self>) -> BinaryMetadataValue {
        let (encoded, expired) = {
            let state = self.state();
            (state.encoded.clone(), left_of(&state.grant).is_zero() && !state.clock_is_ahead)
        };
        if !expired || !self.renewed_instead_of(&encoded).await {
            return encoded;
        }
        self.state().encoded.clone()
    }

    /// After a replica refused `used`: whether there is another grant now, which is worth one more try.
    pub(super) async fn renewed_instead_of(self: &Arc<Self>, used: &BinaryMetadataValue) -> bool {
        if self.state().encoded != *used {
            return true;
        }
        let Some(renewal) = self.renewal(RENEWAL_PAUSE) else { return false };
        // In vain or not: what counts is what there is now.
        let _ = timeout_at(renewal.waited_until, renewal.outcome).await;
        self.state().encoded != *used
    }

    /// A newer grant, however long that takes.
    pub(super) async fn renewed(self: &Arc<Self>) -> Result<Signed, Status> {
        match self.renewal(Duration::ZERO) {
            Some(renewal) => renewal.outcome.await,
            None => Err(Status::failed_precondition("nobody is there to renew the grant")),
        }
    }

    /// The renewal that is under way; a new one, unless the last one ended less than `pause` ago.
    fn renewal(self: &Arc<Self>, pause: Duration) -> Option<Renewal> {
        let renewer = self.renewer.get()?;
        let mut state = self.state();
        if let Some(under_way) = &state.under_way {
            return Some(under_way.clone());
        }
        if state.ended.is_some_and(|ended| ended.elapsed() < pause) {
            return None;
        }
        let (right, renewing) = (self.clone(), renewer(state.grant.clone()));
        let task = tokio::spawn(async move {
            let outcome = renewing.await;
            right.end(&outcome);
            outcome
        });
        let outcome =
            task.map(|ended| ended.unwrap_or_else(|_| Err(Status::unavailable("the node is ending"))));
        let renewal =
            Renewal { outcome: outcome.boxed().shared(), waited_until: Instant::now() + RENEWAL_WAIT };
        state.under_way = Some(renewal.clone());
        Some(renewal)
    }

    fn end(&self, outcome: &Result<Signed, Status>) {
        let mut state = self.state();
        (state.under_way, state.ended) = (None, Some(Instant::now()));
        if let Ok(newer) = outcome {
            state.clock_is_ahead = left_of(newer).is_zero();
            (state.grant, state.encoded) = (newer.clone(), encoded(newer));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Right {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Right").finish_non_exhaustive()
    }
}

/// How long a grant still counts by this machine's clock; an empty one does not.
pub(crate) fn left_of(signed: &Signed) -> Duration {
    let expires = Grant::decode(&*signed.payload).map_or(0, |grant| grant.expires_unix);
    let expires = UNIX_EPOCH.checked_add(Duration::from_secs(expires)).unwrap_or(UNIX_EPOCH);
    expires.duration_since(SystemTime::now()).unwrap_or_default()
}

fn encoded(grant: &Signed) -> BinaryMetadataValue {
    BinaryMetadataValue::from_bytes(&grant.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::watch;
    use tokio::time::sleep;

    use super::*;

    fn grant(number: u8, left: i64) -> Signed {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let grant = Grant { expires_unix: now.saturating_add_signed(left), ..Grant::default() };
        Signed { payload: grant.encode_to_vec(), key_id: vec![number], ..Signed::default() }
    }

    /// Gives grants that have `left` seconds, once it may; how often it was asked.
    fn renewer(left: i64, may: watch::Receiver<bool>) -> (Renewer, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counting = asked.clone();
        let renewer: Renewer = Arc::new(move |before| {
            counting.fetch_add(1, Ordering::Relaxed);
            let mut may = may.clone();
            async move {
                may.wait_for(|may| *may).await.map_err(|error| Status::unavailable(error.to_string()))?;
                Ok(grant(before.key_id[0] + 1, left))
            }
            .boxed()
        });
        (renewer, asked)
    }

    fn right(left: i64, renewer: &Renewer) -> Arc<Right> {
        let right = Arc::new(Right::new(grant(0, left)));
        right.renew_by(renewer.clone());
        right
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_is_renewed_once_before_it_is_used() {
        let (_may, may) = watch::channel(true);
        let (renewer, asked) = renewer(100, may);
        let right = right(-5, &renewer);
        let newer = encoded(&grant(1, 100));
        let used = futures::future::join_all((0..10).map(|_| right.to_use())).await;
        assert!(used.iter().all(|used| *used != encoded(&grant(0, -5))), "{used:?} {newer:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        right.to_use().await;
        assert_eq!(asked.load(Ordering::Relaxed), 1, "it counts");
        assert_eq!(right.grant().key_id, [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_replica_refuses_is_renewed_and_not_without_a_pause() {
        let (_may, may) = watch::channel(true);
        let (renewer, asked) = renewer(100, may);
        let right = right(100, &renewer);
        let first = right.to_use().await;
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        assert!(right.renewed_instead_of(&first).await && right.renewed_instead_of(&first).await);
        assert_eq!(asked.load(Ordering::Relaxed), 1, "the second one finds what the first one brought");
        let second = right.to_use().await;
        assert!(!right.renewed_instead_of(&second).await, "at once is too soon");
        sleep(RENEWAL_PAUSE).await;
        assert!(right.renewed_instead_of(&second).await);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_asks_for_no_grant_before_each_read() {
        let (_may, may) = watch::channel(true);
        let (renewer, asked) = renewer(-3600, may);
        let right = right(-7200, &renewer);
        for _ in 0..10 {
            right.to_use().await;
            sleep(2 * RENEWAL_PAUSE).await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let refused = right.to_use().await;
        assert!(right.renewed_instead_of(&refused).await, "what a replica refuses is renewed all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn a_mesh_that_is_away_is_waited_for_once() {
        let (may, waits) = watch::channel(false);
        let (renewer, asked) = renewer(100, waits);
        let right = right(-5, &renewer);
        let begun = Instant::now();
        for _ in 0..10 {
            right.to_use().await;
        }
        assert_eq!((begun.elapsed(), asked.load(Ordering::Relaxed)), (RENEWAL_WAIT, 1));
        may.send_replace(true);
        assert_eq!(right.renewed().await.unwrap().key_id, [1]);
    }
}
