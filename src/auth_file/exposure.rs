//! Who besides root can read an auth file, or choose what is in it (no I/O).

/// The bit of a directory in which only a file's owner may delete or rename the file.
const STICKY: u32 = 0o1000;

/// Who owns a file or a directory, and what its permission bits are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// The owner's user id.
    pub(super) user: u32,
    /// The group's id.
    pub(super) group: u32,
    /// The permission bits, with the sticky bit.
    pub(super) mode: u32,
}

/// Who else can read or replace the file, in words; empty if only root and the agent's user `us` can.
pub(super) fn exposure(file: Access, directory: Access, us: u32) -> Vec<String> {
    let is_other = |user: u32| user != 0 && user != us;
    let mut who = Vec::new();
    if file.mode & 0o004 != 0 {
        who.push(format!("every user may read it (mode {:04o})", file.mode));
    } else if file.mode & 0o040 != 0 {
        who.push(format!("group {} may read it (mode {:04o})", file.group, file.mode));
    }
    if is_other(file.user) {
        who.push(format!("user {} owns it", file.user));
    }
    if is_other(directory.user) {
        who.push(format!("user {} owns its directory and can replace it", directory.user));
    }
    if directory.mode & STICKY == 0 || is_other(file.user) {
        if directory.mode & 0o002 != 0 {
            who.push("every user may write to its directory and can replace it".to_owned());
        } else if directory.mode & 0o020 != 0 {
            who.push(format!("group {} may write to its directory and can replace it", directory.group));
        }
    }
    who
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_who_can_read_or_replace_the_file_are_named() {
        let access = |user, group, mode| Access { user, group, mode };
        let (file, directory) = (access(0, 0, 0o600), access(0, 0, 0o755));
        let cases = [
            (file, directory, ""),
            (access(1, 0, 0o600), access(1, 0, 0o700), ""),
            (access(0, 0, 0o644), directory, "every user may read it (mode 0644)"),
            (access(0, 5, 0o640), directory, "group 5 may read it (mode 0640)"),
            (access(7, 5, 0o600), directory, "user 7 owns it"),
            (file, access(7, 7, 0o755), "user 7 owns its directory and can replace it"),
            (file, access(0, 0, 0o777), "every user may write to its directory and can replace it"),
            (file, access(0, 8, 0o775), "group 8 may write to its directory and can replace it"),
            (file, access(0, 0, 0o1777), ""),
            (
                access(7, 0, 0o600),
                access(0, 0, 0o1777),
                "user 7 owns it; every user may write to its directory and can replace it",
            ),
        ];
        for (file, directory, expected) in cases {
            assert_eq!(exposure(file, directory, 1).join("; "), expected, "{file:?} in {directory:?}");
        }
    }
}
