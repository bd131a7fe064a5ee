//! The contract between the services: messages, subjects and signatures.
//!
//! `mesh.proto` holds what crosses the bus, `content.proto` the bulk bytes, `node.proto` what a
//! frontend answers on its own machine. [`subjects`] shows the entire conversation.

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
pub mod placement;
pub mod signed;
pub mod subjects;

pub use generated::*;
pub use subjects::Call;
