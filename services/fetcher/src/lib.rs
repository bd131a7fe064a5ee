//! Under construction.

pub mod source;
