//! Owner, mode, labels and other attributes, which a new file takes over from the one that it replaces.

use super::directory::{StepError, from_rustix, step};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use rustix::fs::XattrFlags;
use std::ffi::CString;
use std::fs::File;

const ACCESS_LIST: &str = "system.posix_acl_access";
const SELINUX: &str = "security.selinux";
/// The prefixes of attributes that users and programs set. Others belong to the kernel, and to the content that they were
/// computed from.
const OTHER_PREFIXES: [&[u8]; 2] = [b"user.", b"trusted."];
/// What a label or an access list needs. Few files have more.
const USUAL: usize = 256;
/// The kernel's limit for one attribute, and for the list of their names.
const LARGEST: usize = 64 * 1024;

/// Sets a file's permission bits.
///
/// # Errors
/// If the system call fails.
pub(super) fn set_mode(file: &File, mode: u32) -> Result<(), StepError> {
    fchmod(file, Mode::from_bits_truncate(mode)).map_err(step("give the file its mode back"))
}

/// Gives `new` owner, access list, SELinux label, and the attributes `user.*` and `trusted.*` of `old`, and the permission
/// bits `mode`. Flags that `chattr` sets are not kept.
pub(super) fn copy(new: &File, old: &File, stat: &FileStat, mode: u32) -> Result<(), StepError> {
    let created = fstat(new).map_err(step("look at the temporary file"))?;
    // Only if it differs: without CAP_CHOWN even a change to the same owner may be refused.
    if (created.st_uid, created.st_gid) != (stat.st_uid, stat.st_gid) {
        fchown(new, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
            .map_err(step("give the new file its owner"))?;
    }
    // What the directory's default access list grants to others would take effect with the group bits.
    if matches!(attribute(old, ACCESS_LIST), Ok(None)) && matches!(attribute(new, ACCESS_LIST), Ok(Some(_))) {
        rustix::fs::fremovexattr(new, ACCESS_LIST)
            .map_err(|errno| step("take the inherited access list from the new file")(from_rustix(errno)))?;
    }
    let mode = Mode::from_bits_truncate(mode);
    if mode != Mode::S_IRUSR | Mode::S_IWUSR {
        fchmod(new, mode).map_err(step("give the new file its mode"))?;
    }
    // Without the access list the group bits, then a mask, would grant more than before.
    for name in [SELINUX, ACCESS_LIST] {
        copy_security_attribute(new, old, name)?;
    }
    copy_other_attributes(new, old)?;
    // Setting the access list has changed the group bits, if the file is to become stricter.
    let now = fstat(new).map_err(step("look at the temporary file"))?;
    if Mode::from_bits_truncate(now.st_mode & 0o777) != mode {
        fchmod(new, mode).map_err(step("give the new file its mode"))?;
    }
    Ok(())
}

fn copy_security_attribute(new: &File, old: &File, name: &str) -> Result<(), StepError> {
    let value = match attribute(old, name) {
        Ok(Some(value)) => value,
        // Nothing to keep, or a file system without such attributes.
        Ok(None) | Err(Errno::ENOTSUP) => return Ok(()),
        Err(errno) => return Err(step("read the old file's security attributes")(errno)),
    };
    let inherited = attribute(new, name).ok().flatten();
    if inherited.as_ref() == Some(&value) {
        return Ok(());
    }
    match rustix::fs::fsetxattr(new, name, &value, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS)
            if name == SELINUX && is_as_good(inherited.as_deref(), &value) =>
        {
            Ok(())
        }
        Err(errno) => Err(step("give the new file its security attributes")(from_rustix(errno))),
    }
}

/// Whether the label that the new file inherited from its directory is as good as `wanted`, which may not be set.
///
/// Without SELinux a new file has no label, and a label on the disk has no effect. With SELinux, access depends on the
/// type, the third part of `user:role:type:level`.
fn is_as_good(inherited: Option<&[u8]>, wanted: &[u8]) -> bool {
    let kind = |label: &[u8]| label.split(|byte| *byte == b':').nth(2).map(<[u8]>::to_vec);
    inherited.is_none_or(|inherited| kind(inherited) == kind(wanted))
}

fn copy_other_attributes(new: &File, old: &File) -> Result<(), StepError> {
    // A file system without attributes, or one that does not list them.
    let Ok(names) = read(|buffer| rustix::fs::flistxattr(old, buffer)) else { return Ok(()) };
    let names = names.split(|byte| *byte == 0);
    for name in names.filter(|name| OTHER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
        let Some(name) = CString::new(name).ok().and_then(|name| name.into_string().ok()) else { continue };
        let Ok(Some(value)) = attribute(old, &name) else { continue };
        match rustix::fs::fsetxattr(new, name.as_str(), &value, XattrFlags::empty()) {
            // The agent may not set it; the credentials are more important than it.
            Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {}
            Err(errno) => return Err(step("give the new file its extended attributes")(from_rustix(errno))),
        }
    }
    Ok(())
}

fn attribute(file: &File, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    match read(|buffer| rustix::fs::fgetxattr(file, name, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(errno) => Err(from_rustix(errno)),
    }
}

/// Reads with a system call that fails with `ERANGE` if its buffer is too small.
fn read(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let with = |size| {
        let mut buffer = vec![0; size];
        let length = call(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    };
    match with(USUAL) {
        Err(rustix::io::Errno::RANGE) => with(LARGEST),
        done => done,
    }
}
