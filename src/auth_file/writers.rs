//! Whether another program has a file open for writing, as `/proc` shows it.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The inode of the initial PID namespace, the same on each node. Only there `/proc` shows every process.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// How many open files to look at. A node with 110 pods has about 50,000.
const MAX_OPEN_FILES: usize = 200_000;
/// The bits of the open flags that say for what a file is open (`O_ACCMODE`), and their value for reading only.
const ACCESS_MODE: u32 = 0o3;
const READ_ONLY: u32 = 0;

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

/// An open file, as `fdinfo` describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpenFile {
    /// Whether it is open for writing.
    for_writing: bool,
    /// The kernel's inode number. It can differ from the one in `stat`, for example on overlayfs.
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
    let device = file.metadata().ok()?.dev();
    let own = proc.join("self/fdinfo").join(file.as_raw_fd().to_string());
    let inode = OpenFile::parse(&fs::read_to_string(own).ok()?)?.inode;
    let mut budget = MAX_OPEN_FILES;
    let mut all_seen = sees_all_processes(proc);
    for process in numbered(proc).ok()? {
        match search(&process, device, inode, &mut budget) {
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
fn search(process: &Path, device: u64, inode: u64, budget: &mut usize) -> Found {
    let descriptors = match numbered(&process.join("fd")) {
        Ok(descriptors) => descriptors,
        Err(error) if has_ended(&error) => return Found::Nothing,
        Err(_) => return Found::Incomplete,
    };
    let mut found = Found::Nothing;
    for descriptor in descriptors {
        let Some(left) = budget.checked_sub(1) else { return Found::Incomplete };
        *budget = left;
        match is_writer(process, &descriptor, device, inode) {
            Ok(true) => return Found::Writer,
            Ok(false) => {}
            Err(error) if has_ended(&error) => {}
            Err(_) => found = Found::Incomplete,
        }
    }
    found
}

fn is_writer(process: &Path, descriptor: &Path, device: u64, inode: u64) -> io::Result<bool> {
    // Sockets and pipes, the most of all, are seen by the link.
    let target = fs::read_link(descriptor)?;
    let is_other = |prefix: &&str| target.as_os_str().as_encoded_bytes().starts_with(prefix.as_bytes());
    if ["socket:", "pipe:", "anon_inode:"].iter().any(is_other) {
        return Ok(false);
    }
    let number = descriptor.file_name().unwrap_or(OsStr::new(""));
    let open = OpenFile::parse(&fs::read_to_string(process.join("fdinfo").join(number))?);
    // Only a file of the same number is asked for its device: `stat` waits for ever on a file system that hangs.
    Ok(match open {
        Some(open) if open.for_writing && open.inode == inode => fs::metadata(descriptor)?.dev() == device,
        _ => false,
    })
}

/// The entries of a directory whose names are numbers.
fn numbered(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let is_number = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    Ok(entries.iter().filter(|entry| is_number(&entry.file_name())).map(fs::DirEntry::path).collect())
}

/// Whether the process, or its open file, has ended since the directory was read.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

impl OpenFile {
    /// Reads `/proc/PID/fdinfo/N`. `None` if it does not tell the inode.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let flags = u32::from_str_radix(field("flags")?, 8).ok()?;
        Some(Self { for_writing: flags & ACCESS_MODE != READ_ONLY, inode: field("ino")?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn fdinfo_tells_the_flags_and_the_inode() {
        let of = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t27\nino:\t9978437\n");
        for (flags, for_writing) in
            [("0100000", false), ("0102001", true), ("0100002", true), ("02100000", false)]
        {
            let expected = OpenFile { for_writing, inode: 9_978_437 };
            assert_eq!(OpenFile::parse(&of(flags)), Some(expected), "{flags}");
        }
        // A kernel before 5.14.
        assert_eq!(OpenFile::parse("pos:\t0\nflags:\t0102001\nmnt_id:\t27\n"), None);
        assert_eq!(OpenFile::parse(""), None);
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
