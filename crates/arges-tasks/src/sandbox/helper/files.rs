//! The file system that a program sees, put together of mounts.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::super::Job;
use super::why;

/// Holds what is to be mounted; covers a directory that every system has.
const STAGE: &str = "/tmp";
/// The program's root while it is put together.
const ROOT: &str = "/tmp/root";
/// Where the program works.
pub(super) const WORK: &str = "/tmp/work";
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What comes of the host, in the order of its places on the stage.
fn sources(job: &Job) -> impl Iterator<Item = (PathBuf, &Path)> {
    let paths = job.system.iter().map(PathBuf::as_path).chain(DEVICES.map(Path::new));
    paths.enumerate().map(|(place, path)| (Path::new(STAGE).join(format!("source{place}")), path))
}

fn mount_at(
    source: &str,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), String> {
    mount(Some(source), target, kind, flags, options).map_err(why(&format!("mount {}", target.display())))
}

/// Lets no mount here be seen by others.
pub(super) fn make_private() -> Result<(), String> {
    mount_at("none", Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
}

/// Mounts all that comes of the host on a stage of its own.
pub(super) fn stage(job: &Job) -> Result<(), String> {
    // Opened before the stage covers anything, and then mounted by what was opened.
    let open = |(place, path): (PathBuf, &Path)| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
        file.map(|file| (file, place)).map_err(why(&format!("open {}", path.display())))
    };
    let opened: Vec<(File, PathBuf)> = sources(job).map(open).collect::<Result<_, String>>()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at("stage", Path::new(STAGE), Some("tmpfs"), flags, Some("size=1m,mode=755"))?;
    for (file, place) in &opened {
        let is_directory = file.metadata().map_err(why("look at what is to be mounted"))?.is_dir();
        make_mount_point(place, is_directory)?;
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        mount_at(&source, place, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
    }
    make_mount_point(Path::new(ROOT), true)
}

fn make_mount_point(path: &Path, is_directory: bool) -> Result<(), String> {
    let make = || match (is_directory, path.parent()) {
        (true, _) => fs::create_dir_all(path),
        (false, Some(parent)) => fs::create_dir_all(parent).and_then(|()| File::create(path).map(drop)),
        (false, None) => Ok(()),
    };
    make().map_err(why(&format!("make {}", path.display())))
}

/// Puts the program's root together, of the stage and a tmpfs to write to.
pub(super) fn assemble(job: &Job) -> Result<(), String> {
    let root = Path::new(ROOT);
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at("root", root, Some("tmpfs"), flags, Some("size=1m,mode=755"))?;
    for (place, path) in sources(job) {
        let target = inside(path);
        make_mount_point(&target, place.is_dir())?;
        mount_at(&place.to_string_lossy(), &target, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
    }
    make_read_only(root)?;
    let device_links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/shm", "/tmp/.shm"),
    ];
    let device_links = device_links.map(|(at, to)| (PathBuf::from(at), PathBuf::from(to)));
    for (at, to) in job.links.iter().chain(&device_links) {
        symlink(to, inside(at)).map_err(why(&format!("link {}", at.display())))?;
    }
    for directory in ["etc", "old", "proc", "tmp"] {
        fs::create_dir_all(root.join(directory)).map_err(why("make directories"))?;
    }
    let write = |path: &str, text: &str| fs::write(root.join(path), text).map_err(why("write to /etc"));
    write("etc/passwd", "program:x:1000:1000::/tmp:/bin/sh\n")?;
    write("etc/group", "program:x:1000:\n")?;
    // Besides the program's files there are `/tmp` itself, `work` and `.shm`.
    let options = format!("size={},nr_inodes={},mode=700", job.limits.disk, job.limits.files + 3);
    mount_at("tmp", &root.join("tmp"), Some("tmpfs"), flags, Some(&options))?;
    for directory in ["tmp/work", "tmp/.shm"] {
        fs::create_dir(root.join(directory)).map_err(why("make directories"))?;
    }
    Ok(())
}

/// Makes all mounts below a directory read-only, those within others too. The flags that they have stay: in a user
/// namespace they may not be taken off.
fn make_read_only(root: &Path) -> Result<(), String> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(why("read its mounts"))?;
    for line in table.lines() {
        let mut fields = line.split(' ').skip(4);
        let (Some(point), Some(options)) = (fields.next(), fields.next()) else { continue };
        let point = unescape(point);
        if point == root || !point.starts_with(root) {
            continue;
        }
        let flag = |option| match option {
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            "noexec" => MsFlags::MS_NOEXEC,
            "noatime" => MsFlags::MS_NOATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            "relatime" => MsFlags::MS_RELATIME,
            _ => MsFlags::empty(),
        };
        let kept = options.split(',').map(flag).fold(MsFlags::empty(), MsFlags::union);
        let flags = kept | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        mount_at("none", &point, None, flags, None)?;
    }
    Ok(())
}

/// A path of the table of mounts, in which spaces, tabs, line breaks and backslashes are written as octal numbers.
fn unescape(path: &str) -> PathBuf {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(pairs.iter().fold(path.to_owned(), |path, (code, character)| path.replace(code, character)))
}

/// Makes the root that was put together the process's own, and the host's unreachable. Whether it has a `/proc`.
pub(super) fn enter() -> Result<bool, String> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Not allowed where some of the host's own `/proc` is covered, as in containers.
    let has_proc = mount_at("proc", &Path::new(ROOT).join("proc"), Some("proc"), flags, None).is_ok();
    pivot_root(ROOT, "/tmp/root/old").map_err(why("change its root"))?;
    chdir("/").map_err(why("change its directory"))?;
    umount2("/old", MntFlags::MNT_DETACH).map_err(why("leave the host's files"))?;
    fs::remove_dir("/old").map_err(why("leave the host's files"))?;
    let flags =
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at("none", Path::new("/"), None, flags, None)?;
    Ok(has_proc)
}

/// Writes the program's files below a directory.
pub(super) fn write_files(job: &Job, directory: &Path) -> Result<(), String> {
    for (path, text) in &job.files {
        let path = directory.join(path);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        made.map_err(why("write the program's files"))?;
    }
    Ok(())
}
