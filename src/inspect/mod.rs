//! What `status` and `explain` find out about this node, and how they print it.

pub mod explain;
pub mod explain_json;
pub mod explain_text;
pub mod plugins;
pub mod registry;
pub mod status;
pub mod status_text;
pub mod visibility;
