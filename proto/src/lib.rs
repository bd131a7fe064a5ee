//! The contract between the services: messages, subjects and signatures.
//!
//! `mesh.proto` holds what is asked over the bus, `events.proto` what is told on it, `content.proto` the bulk bytes,
//! `node.proto` what a frontend answers on its own machine. [`subjects`] shows the entire conversation. [`containerd`] and
//! [`cri`] are not ours: what a container runtime asks of a snapshotter and answers about its images, and what Kubernetes
//! asks of a runtime.

mod generated {
    #![allow(
        missing_debug_implementations,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        clippy::large_futures,
        reason = "generated code"
    )]
    tonic::include_proto!("sluice.v1");
}
/// The parts of Kubernetes' container runtime interface that are spoken here.
pub mod cri {
    #![allow(
        missing_debug_implementations,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        clippy::large_futures,
        reason = "generated code"
    )]
    tonic::include_proto!("runtime.v1");
}

/// The parts of containerd's own interface that are spoken here.
pub mod containerd {
    #![allow(
        missing_debug_implementations,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
        pub mod images {
            pub mod v1 {
                tonic::include_proto!("containerd.services.images.v1");
            }
        }
        pub mod content {
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
    }
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    pub use services::content::v1 as content;
    pub use services::images::v1 as images;
    pub use services::snapshots::v1 as snapshots;
}
pub mod conversation;
mod facts;
pub mod gatekeeper;
mod pairs;
pub mod placement;
pub mod refusal;
pub mod signed;
pub mod subjects;

pub use conversation::Role;
pub use generated::*;
pub use refusal::Refusal;
pub use subjects::Call;
