//! Whether another program has a file open for writing, as `/proc` shows it.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, fstat, openat, readlinkat_raw, statat};
use rustix::path::Arg;
use std::ffi::CStr;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

/// The inode of the initial PID namespace, the same on each node. Only there `/proc` shows every process.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// How many open files to look at. A node with 110 pods has about 50,000.
const MAX_OPEN_FILES: usize = 200_000;
/// Bytes of a directory that are read at once: 170 open files.
const READ_AT_ONCE: usize = 4096;

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No writer.
    Nothing,
    /// A writer.
    Writer,
    /// No writer, but a part could not be looked at.
    Incomplete,
}

/// The file whose writers are searched for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Its file system, as in `stat`.
    device: u64,
    /// The kernel's inode number, as in `fdinfo`. It can differ from the one in `stat`, for example on overlayfs.
    inode: u64,
}

/// Notices that a program has opened a file and not closed it yet: cheap, where a look through `/proc` is not, and in a
/// container, too.
#[derive(Debug)]
pub(super) struct OpenWatch(Option<Inotify>);

impl OpenWatch {
    /// Begins to watch. Openings by this process count, too, so open the file first.
    pub(super) fn new(file: &File) -> Self {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let events = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE;
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).and_then(|watch| {
            watch.add_watch(path.as_str(), events)?;
            Ok(watch)
        });
        Self(watch.ok())
    }

    /// Whether a program has opened the file since the last call and not closed it, or has changed it, or the kernel could not
    /// be asked. The kernel merges equal events in a row, so an opening can be missed while another program closes the file.
    pub(super) fn may_be_open(&self) -> bool {
        let Some(watch) = &self.0 else { return true };
        let mut open = 0_usize;
        loop {
            let events = match watch.read_events() {
                Ok(events) => events,
                Err(errno) => return errno != Errno::EAGAIN || open > 0,
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_OPEN) {
                    open += 1;
                } else if event.mask.intersects(AddWatchFlags::IN_CLOSE) {
                    open = open.saturating_sub(1);
                } else {
                    // It was changed, or events were lost.
                    return true;
                }
            }
        }
    }
}

/// Whether a process has the file open for writing. `None` if no such process was found, but `/proc` does not show all of
/// them: this process is in a container, or lacks the right to look at others, or the kernel is older than 5.14.
pub(super) fn is_open_for_writing(file: &File) -> Option<bool> {
    is_open_for_writing_in(Path::new("/proc"), file)
}

fn is_open_for_writing_in(proc: &Path, file: &File) -> Option<bool> {
    let own = proc.join("self/fdinfo").join(file.as_raw_fd().to_string());
    let wanted = Wanted { device: fstat(file).ok()?.st_dev, inode: inode(&fs::read(own).ok()?)? };
    let mut budget = MAX_OPEN_FILES;
    let mut all_seen = sees_all_processes(proc);
    let proc = directory(CWD, proc).ok()?;
    let mut buffer = [MaybeUninit::uninit(); READ_AT_ONCE];
    let mut processes = RawDir::new(&proc, &mut buffer);
    while let Some(process) = processes.next() {
        let process = process.ok()?;
        let Some(id) = number(process.file_name()) else { continue };
        match search(&proc, id, wanted, &mut budget) {
            Found::Writer => return Some(true),
            Found::Nothing => {}
            Found::Incomplete => all_seen = false,
        }
    }
    all_seen.then_some(false)
}

/// Whether this process is in the initial PID namespace, and `/proc` is not mounted with `hidepid`: then process 1 is shown.
fn sees_all_processes(proc: &Path) -> bool {
    let is_initial =
        fs::read_link(proc.join("self/ns/pid")).is_ok_and(|name| name == Path::new(INITIAL_PID_NAMESPACE));
    is_initial && proc.join("1/fd").is_dir()
}

/// Searches the open files of one process.
fn search(proc: &OwnedFd, id: &str, wanted: Wanted, budget: &mut usize) -> Found {
    let descriptors = match directory(proc, format!("{id}/fd")) {
        Ok(descriptors) => descriptors,
        Err(error) => return if has_ended(error) { Found::Nothing } else { Found::Incomplete },
    };
    let mut buffer = [MaybeUninit::uninit(); READ_AT_ONCE];
    let mut entries = RawDir::new(&descriptors, &mut buffer);
    let mut found = Found::Nothing;
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return if has_ended(error) { found } else { Found::Incomplete },
        };
        let Some(descriptor) = number(entry.file_name()) else { continue };
        let Some(left) = budget.checked_sub(1) else { return Found::Incomplete };
        *budget = left;
        match is_writer(&descriptors, descriptor, wanted) {
            Ok(true) => return Found::Writer,
            Ok(false) => {}
            Err(error) if has_ended(error) => {}
            // The permission is for the whole process, so its other files cannot be looked at, either.
            Err(rustix::io::Errno::ACCESS) => return Found::Incomplete,
            Err(_) => found = Found::Incomplete,
        }
    }
    found
}

/// Whether an open file is the wanted one, and open for writing. The cheapest checks come first: a node has thousands of open
/// files.
fn is_writer(descriptors: &OwnedFd, descriptor: &str, wanted: Wanted) -> rustix::io::Result<bool> {
    // Only a path begins with `/`. Most descriptors are sockets and pipes.
    let mut first = [0];
    readlinkat_raw(descriptors, descriptor, &mut first)?;
    if first != *b"/" {
        return Ok(false);
    }
    // The link's owner may write if the file is open for writing.
    let link = statat(descriptors, descriptor, AtFlags::SYMLINK_NOFOLLOW)?;
    if !Mode::from_raw_mode(link.st_mode).contains(Mode::WUSR) {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let info = openat(descriptors, format!("../fdinfo/{descriptor}"), flags, Mode::empty())?;
    let mut text = [0; 256];
    let length = rustix::io::read(info, &mut text)?;
    // Only a file of the same number is asked for its device: `stat` waits for ever on a file system that hangs.
    Ok(inode(&text[..length]) == Some(wanted.inode)
        && statat(descriptors, descriptor, AtFlags::empty())?.st_dev == wanted.device)
}

fn directory(at: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The name of a process or of an open file.
fn number(name: &CStr) -> Option<&str> {
    name.to_str().ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether the process, or its open file, has ended since the directory was read.
fn has_ended(error: rustix::io::Errno) -> bool {
    matches!(error, rustix::io::Errno::NOENT | rustix::io::Errno::SRCH)
}

/// The inode number in `/proc/PID/fdinfo/N`. `None` before Linux 5.14.
fn inode(fdinfo: &[u8]) -> Option<u64> {
    let text = str::from_utf8(fdinfo).ok()?;
    text.lines().find_map(|line| line.strip_prefix("ino:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::os::unix::fs::symlink;

    #[test]
    fn fdinfo_tells_the_inode_since_linux_5_14() {
        assert_eq!(
            inode(b"pos:\t0\nflags:\t0102001\nmnt_id:\t27\nino:\t9978437\nlock:\t1: ino:"),
            Some(9_978_437)
        );
        assert_eq!(inode(b"pos:\t0\nflags:\t0102001\nmnt_id:\t27\n"), None);
        assert_eq!(inode(b""), None);
    }

    /// This process is a writer like any other, and it can always look at itself.
    #[test]
    fn a_writer_is_seen_and_a_reader_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = File::open(file.path()).unwrap();
        assert_eq!(is_open_for_writing(&read), Some(true), "the temporary file is open for writing");
        let path = file.into_temp_path();
        assert_ne!(is_open_for_writing(&read), Some(true));
        let writer = File::options().append(true).open(&path).unwrap();
        assert_eq!(is_open_for_writing(&read), Some(true));
        drop(writer);
        assert_ne!(is_open_for_writing(&read), Some(true));
    }

    #[test]
    fn a_program_counts_from_opening_the_file_until_it_closes_it() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = File::open(&path).unwrap();
        let watch = OpenWatch::new(&file);
        let writer = || File::options().append(true).open(&path).unwrap();
        assert_eq!(io::read_to_string(&file).unwrap(), "");
        assert!(!watch.may_be_open());
        for _ in 0..2 {
            assert_eq!(fs::read(&path).unwrap(), b"");
            drop(writer());
        }
        assert!(!watch.may_be_open());
        fs::read(&path).unwrap();
        let open = writer();
        assert!(watch.may_be_open());
        drop(open);
        let mut open = writer();
        io::Write::write_all(&mut open, b"{}").unwrap();
        drop(open);
        assert!(watch.may_be_open(), "it has changed");
    }

    /// A directory like `/proc`, with this process and one more.
    fn proc(namespace: &str, first: impl FnOnce(&Path)) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("self/ns")).unwrap();
        symlink(namespace, proc.path().join("self/ns/pid")).unwrap();
        symlink("/proc/self/fdinfo", proc.path().join("self/fdinfo")).unwrap();
        symlink("/proc/self", proc.path().join("2")).unwrap();
        fs::create_dir(proc.path().join("1")).unwrap();
        first(&proc.path().join("1"));
        proc
    }

    #[test]
    fn a_writer_is_seen_beside_descriptors_that_cannot_be_read() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let read = File::open(&path).unwrap();
        let writer = File::options().append(true).open(&path).unwrap();
        let proc = proc(INITIAL_PID_NAMESPACE, |process| {
            fs::create_dir(process.join("fd")).unwrap();
            symlink("/proc/self/fdinfo", process.join("fdinfo")).unwrap();
            // Before and after the link: the order of a directory is not known.
            for number in 1_000..1_020 {
                // Not a link.
                File::create(process.join("fd").join(number.to_string())).unwrap();
            }
            symlink(&path, process.join("fd").join(writer.as_raw_fd().to_string())).unwrap();
        });
        fs::remove_file(proc.path().join("2")).unwrap();
        assert_eq!(is_open_for_writing_in(proc.path(), &read), Some(true));
        fs::remove_file(proc.path().join("1/fd").join(writer.as_raw_fd().to_string())).unwrap();
        assert_eq!(is_open_for_writing_in(proc.path(), &read), None);
    }

    #[test]
    fn without_a_view_of_all_processes_the_answer_is_unknown() {
        let readable = |process: &Path| fs::create_dir(process.join("fd")).unwrap();
        let hidden = |_: &Path| {};
        // As a process whose files may not be looked at: reading the directory fails.
        let forbidden = |process: &Path| symlink("fd", process.join("fd")).unwrap();
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let read = File::open(&path).unwrap();
        let ask = |proc: &tempfile::TempDir| is_open_for_writing_in(proc.path(), &read);
        let proc_of = [
            (proc(INITIAL_PID_NAMESPACE, readable), Some(false)),
            (proc("pid:[4026532201]", readable), None),
            (proc(INITIAL_PID_NAMESPACE, hidden), None),
            (proc(INITIAL_PID_NAMESPACE, forbidden), None),
        ];
        for (proc, expected) in &proc_of {
            assert_eq!(ask(proc), *expected);
        }
        // A writer that is seen counts, whatever else is hidden.
        let _writer = File::options().append(true).open(&path).unwrap();
        for (proc, _) in &proc_of {
            assert_eq!(ask(proc), Some(true));
        }
    }
}
