//! Asking a registry whether it would let a pull happen, for `explain --verify`.
//!
//! | file | what it knows |
//! | --- | --- |
//! | [`challenge`] | what a registry wants, and to whom a credential may be sent (pure) |
//! | [`answer`] | what an answer means (pure) |
//! | [`client`] | the requests |

pub mod answer;
pub mod challenge;
pub mod client;
