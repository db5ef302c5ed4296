//! Asking a registry whether it would let a pull happen, for `explain --verify`.
//!
//! | file | what it knows |
//! | --- | --- |
//! | [`challenge`] | which kind of credential a registry wants, and where one may be sent (pure) |
//! | [`answer`] | what an answer means (pure) |
//! | [`client`] | the requests |

pub mod answer;
pub mod challenge;
pub mod client;
