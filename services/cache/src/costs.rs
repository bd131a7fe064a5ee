//! What a project pays for content: a request for each chunk, tree and map, and the stored bytes that are sent.

use allowance::{Allowances, Class, Spender};
use names::Project;
use proto::QuotaMetric;
use proto::chunks_request::Priority;
use tonic::Status;

/// Pays for one reader. Looked up once for each of its requests: paying takes no lock.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    requests: Spender,
    bytes: Spender,
    class: Class,
}

impl Costs {
    pub(crate) fn of(allowances: &Allowances, project: &Project, priority: Priority) -> Costs {
        let class = match priority {
            Priority::Demand => Class::Demand,
            Priority::Prefetch => Class::Prefetch,
            Priority::Background => Class::Background,
        };
        Costs {
            requests: allowances.of(project.as_str(), QuotaMetric::ContentRequests),
            bytes: allowances.of(project.as_str(), QuotaMetric::ContentBytes),
            class,
        }
    }

    /// Before anything is read for it.
    pub(crate) async fn request(&self) -> Result<(), Status> {
        self.requests.take(1, self.class).await
    }

    /// Before anything of it is sent.
    pub(crate) async fn sending(&self, bytes: usize) -> Result<(), Status> {
        self.bytes.take(bytes as u64, self.class).await
    }
}
