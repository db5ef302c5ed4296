//! Tokens: what is asked of which token source, what the targets should hold, and where a token comes from.

mod request;
mod store;

pub use request::{LAPSE, TokenRequest, wanted};
pub use store::{TokenStore, fetch_as, unanswered};
