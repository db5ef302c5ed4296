//! The auth file: the docker config on the node that the kubelet reads.
//!
//! An update reads the file under a lock, judges it, merges, and puts a new file in its place. Programs that know nothing
//! of the lock may write the same file: a file that is being written is not judged, and a file that has changed since it was
//! read is not replaced.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`mod@file`] | what an auth file is: its path, and the kubelet that reads it |
//! | [`update`] | publish, remove: read, judge, plan, replace, and again if another program was faster |
//! | [`plan`] | what an update does with a file that is at rest |
//! | [`judge`] | what a file holds, by the kubelet's rules (no I/O) |
//! | [`rest`] | whether another program is still writing (no I/O) |
//! | [`memory`] | what the agent remembers of a file between two updates (no I/O) |
//! | [`exposure`] | who besides root can read or replace a file (no I/O) |
//! | [`hidden`] | files that the auth file hides from the kubelet |
//! | [`set_aside`] | copies of damaged files |
//! | [`read`] | reads files of bounded size |
//! | [`writers`] | whether a program has a file open for writing |
//! | [`symlinks`] | follows the symlinks to a file |
//! | [`directory`] | a locked directory, and lookups in it |
//! | [`replace`], [`attributes`] | the system calls of a replacement |
//! | [`linked_layout`] | makes and undoes the linked layout |
//! | [`link_record`] | what `link --watch` records for the agent, which does not see the link |
//! | [`publish`] | updates several files, each in a thread of its own |
//! | [`outcome`], [`error`] | how an update ends |

pub mod attributes;
pub mod directory;
pub mod error;
pub mod exposure;
pub mod file;
pub mod hidden;
pub mod judge;
pub mod link_record;
pub mod linked_layout;
pub mod memory;
pub mod outcome;
pub mod plan;
pub mod publish;
pub mod read;
pub mod replace;
pub mod rest;
pub mod selinux;
pub mod set_aside;
pub mod symlinks;
pub mod update;
pub mod writers;

pub use self::error::AuthFileError;
pub use self::file::{AuthFile, DIRECTORY};
pub use self::link_record::{LinkFailure, LinkRecord, LinkWatch};
pub use self::memory::Memory;
pub use self::outcome::{Effect, Link, Note, Outcome, PublishOptions};
pub use self::read::read_place;
