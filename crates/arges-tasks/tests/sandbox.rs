//! Programs that mean harm: contained, and the machine unharmed, with namespaces and with limits alone.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arges_tasks::sandbox::{
    Isolation, Limits, Outcome, Policy, Program, Report, Sandbox, SandboxError, available,
};

/// Runs a program in each of the ways there are, and has its report checked.
fn in_every_way(limits: &Limits, program: &Program, check: impl Fn(&Report)) {
    let mut policies = vec![Policy::Limits];
    match available() {
        Ok(()) => policies.push(Policy::Namespaces),
        Err(error) => eprintln!("skipped with namespaces, of which there are none here: {error}"),
    }
    for policy in policies {
        let report = Sandbox { limits: limits.clone(), policy: Some(policy) }.run(program).unwrap();
        let with_namespaces = matches!(report.isolation, Isolation::Namespaces { .. });
        assert_eq!(with_namespaces, policy == Policy::Namespaces);
        check(&report);
    }
}

/// Limits of a patient test: a busy machine takes its time to start Python.
fn limits() -> Limits {
    Limits { wall: Duration::from_secs(10), memory: 64 << 20, disk: 1 << 20, ..Limits::default() }
}

fn hasty() -> Limits {
    Limits { wall: Duration::from_millis(300), ..limits() }
}

/// A program with a word among its arguments that no other process has.
fn marked(source: &str, mark: &str) -> Program {
    let mut program = Program::python(source);
    program.arguments.push(mark.to_owned());
    program
}

/// Whether a program that was started with the mark is there. A host's job has it too, but not among its arguments.
fn is_running(mark: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let mut line = Vec::new();
        let file = fs::File::open(entry.path().join("cmdline"));
        file.is_ok_and(|mut file| file.read_to_end(&mut line).is_ok())
            && String::from_utf8_lossy(&line).split('\0').any(|word| word == mark)
    })
}

/// Waits until no process of the machine has the mark. Those that were killed take a moment to be gone.
fn assert_gone(mark: &str) {
    let started = Instant::now();
    while is_running(mark) {
        assert!(started.elapsed() < Duration::from_secs(5), "processes of {mark} go on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn prints(source: &str, expected: &str) {
    in_every_way(&limits(), &Program::python(source), |report| {
        assert_eq!((report.stdout.trim(), report.outcome), (expected, Outcome::Ok), "{report:?}");
    });
}

#[test]
fn a_program_reads_its_input_and_files_and_its_output_and_status_are_told() {
    let program =
        Program::python("import sys\nprint(open('a/b.txt').read() + sys.stdin.read())\nsys.exit(3)")
            .with_file("a/b.txt", "Ä")
            .with_stdin("ß");
    in_every_way(&limits(), &program, |report| {
        assert_eq!((report.stdout.as_str(), report.outcome), ("Äß\n", Outcome::Exit(3)), "{report:?}");
        assert!(report.seconds > 0.0);
    });
    let program =
        Program::shell("sort | uniq -c | awk '{print $2, $1}'; echo no >&2").with_stdin("b\na\nb\n");
    in_every_way(&limits(), &program, |report| {
        assert_eq!((report.stdout.as_str(), report.stderr.as_str()), ("a 1\nb 2\n", "no\n"), "{report:?}");
        assert_eq!(report.outcome, Outcome::Ok);
    });
}

#[test]
fn a_fork_bomb_ends_at_its_number_of_processes_and_leaves_none() {
    let bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass";
    in_every_way(&hasty(), &marked(bomb, "arges-fork-bomb"), |report| {
        assert_ne!(report.outcome, Outcome::Ok, "{report:?}");
        assert_gone("arges-fork-bomb");
    });
    let count = "import os, time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            time.sleep(60)\n\
                 \x20       n += 1\nexcept OSError:\n    print(n)";
    let few = Limits { processes: 8, wall: Duration::from_secs(3), ..limits() };
    in_every_way(&few, &marked(count, "arges-fork-count"), |report| {
        // Outside of a user namespace others of the same user come and go, and are counted.
        let most = if matches!(report.isolation, Isolation::Namespaces { .. }) { 8 } else { 100 };
        let count: u32 = report.stdout.trim().parse().unwrap();
        assert!(count <= most, "{report:?}");
        assert_gone("arges-fork-count");
    });
    let shell = Program::shell(":(){ :|:& };:");
    in_every_way(&hasty(), &shell, |report| assert!(report.stdout.is_empty(), "{report:?}"));
}

#[test]
fn endless_output_is_stopped_and_cut() {
    for source in ["while True: print('x' * 1000)", "import os\nwhile True: os.write(2, b'\\0' * 65536)"] {
        let few = Limits { output: 10_000, ..limits() };
        in_every_way(&few, &Program::python(source), |report| {
            assert_eq!(report.outcome, Outcome::Output, "{source}");
            assert!(report.stdout.len() + report.stderr.len() <= 20_002, "{}", report.stdout.len());
        });
    }
}

#[test]
fn files_grow_to_their_limit_only() {
    let one = "try:\n    f = open('big', 'wb')\n    while True: f.write(bytes(65536)); f.flush()\n\
               except OSError: print('full')";
    in_every_way(&limits(), &Program::python(one), |report| {
        let stopped = report.stdout.trim() == "full" || report.outcome == Outcome::Disk;
        assert!(stopped, "{report:?}");
    });
    let many = "import os, time\nn = 0\ntry:\n    while True:\n        open(str(n), 'wb').write(bytes(1000))\n        n += 1\n\
                except OSError: print('full')";
    in_every_way(&Limits { files: 100, ..limits() }, &Program::python(many), |report| {
        let stopped = report.stdout.trim() == "full" || report.outcome == Outcome::Disk;
        assert!(stopped, "{report:?}");
    });
}

#[test]
fn there_is_no_network() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let source = format!(
        "import socket\nfor family, kind in [(2, 1), (2, 2), (10, 1), (16, 3), (17, 3)]:\n    try:\n\
         \x20       s = socket.socket(family, kind)\n        s.settimeout(0.2)\n\
         \x20       s.connect(('127.0.0.1', {port}))\n        print('connected')\n    except (OSError, ValueError): pass\n\
         a, b = socket.socketpair()\na.send(b'within'); print(b.recv(6).decode())"
    );
    prints(&source, "within");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn others_cannot_be_killed_or_traced() {
    // The process numbers of the host are tried, too: this test's own process and its parent among them.
    let source = format!(
        "import os, signal, ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nhit = 0\n\
         for process in [{}, {}, os.getppid(), 1]:\n    for attempt in [lambda: os.kill(process, signal.SIGKILL),\n\
         \x20           lambda: os.kill(process, signal.SIGTERM), lambda: open(f'/proc/{{process}}/mem', 'r+b').read(1)]:\n\
         \x20       try: attempt()\n        except OSError: pass\n    hit += libc.ptrace(16, process, 0, 0) == 0\n\
         print(hit, 'alive')",
        std::process::id(),
        std::os::unix::process::parent_id(),
    );
    prints(&source, "0 alive");
}

#[test]
fn nothing_of_the_host_can_be_read() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "the secret").unwrap();
    let here = env!("CARGO_MANIFEST_DIR");
    let source = format!(
        "import os\nfor path in [{:?}, {here:?} + '/Cargo.toml', '/etc/shadow', '/etc/hostname', '/proc/1/environ', \
         '/proc/{}/environ', '/proc/1/root' + {:?}, '../' * 20 + {:?}]:\n    try: print(open(path).read())\n\
         \x20   except OSError: pass\nfor path in ['/root', '/home', '/work', {here:?}, '/sys', '/var']:\n\
         \x20   try: print(os.listdir(path))\n    except OSError: pass\nprint(os.environ.get('CARGO_MANIFEST_DIR', 'none'))",
        secret.path(),
        std::process::id(),
        secret.path(),
        secret.path(),
    );
    in_every_way(&limits(), &Program::python(source.as_str()), |report| {
        if report.isolation == (Isolation::Limits { files: false }) {
            eprintln!("not held without namespaces: there is no Landlock here");
            return;
        }
        assert_eq!((report.stdout.trim(), report.outcome), ("none", Outcome::Ok), "{report:?}");
    });
}

#[test]
fn the_system_cannot_be_written_to_and_links_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    fs::write(&target, "as it was").unwrap();
    fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let source = format!(
        "import os\nn = 0\nfor path in ['/usr/x', '/x', '/dev/x', '/etc/passwd', '/proc/sys/kernel/core_pattern', \
         '/proc/sysrq-trigger', {target:?}]:\n    os.symlink(path, 'link' + str(n))\n    for name in [path, 'link' + str(n)]:\n\
         \x20       try: open(name, 'w').write('x'); print('wrote', path)\n        except OSError: pass\n    n += 1\n\
         try: os.chmod('/usr', 0o777); print('changed')\nexcept OSError: pass"
    );
    in_every_way(&limits(), &Program::python(source.as_str()), |report| {
        if report.isolation == (Isolation::Limits { files: false }) {
            eprintln!("not held without namespaces: there is no Landlock here");
            return;
        }
        assert_eq!((report.stdout.trim(), report.outcome), ("", Outcome::Ok), "{report:?}");
    });
    assert_eq!(fs::read_to_string(&target).unwrap(), "as it was");
    for path in ["../x", "/x", "a/../../x"] {
        let program = Program::python("").with_file(path, "");
        assert!(matches!(Sandbox::default().run(&program), Err(SandboxError::Path(_))), "{path}");
    }
}

#[test]
fn a_program_that_sleeps_or_spins_past_its_time_is_stopped() {
    for source in ["import time\ntime.sleep(60)", "while True: pass"] {
        in_every_way(&hasty(), &Program::python(source), |report| {
            assert_eq!(report.outcome, Outcome::WallTime);
            assert!(report.seconds < 5.0, "{report:?}");
        });
    }
    let deaf = "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n\
                \x20   except (OSError, ValueError): pass\nprint('deaf', flush=True)\ntime.sleep(60)";
    in_every_way(&hasty(), &marked(deaf, "arges-deaf"), |report| {
        assert_eq!(report.outcome, Outcome::WallTime);
        assert_gone("arges-deaf");
    });
}

#[test]
fn memory_is_bounded_for_one_process_and_for_all_together() {
    let one = "x = []\nwhile True: x.append(bytearray(b'x' * (1 << 20)))";
    in_every_way(&limits(), &Program::python(one), |report| {
        assert!(matches!(report.outcome, Outcome::Memory | Outcome::Exit(1)), "{report:?}");
    });
    let huge = "x = bytearray(1 << 40)";
    in_every_way(&limits(), &Program::python(huge), |report| {
        assert_eq!(report.outcome, Outcome::Exit(1), "{report:?}");
        assert!(report.stderr.contains("MemoryError"));
    });
    let several = "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = bytearray(b'x' * (20 << 20))\n\
                   \x20       time.sleep(60)\ntime.sleep(60)";
    in_every_way(&limits(), &marked(several, "arges-memory"), |report| {
        if report.isolation == (Isolation::Namespaces { proc: false }) {
            eprintln!("not held here: there is no /proc of its own to watch memory in");
            return;
        }
        assert_eq!(report.outcome, Outcome::Memory, "{report:?}");
        assert_gone("arges-memory");
    });
}

#[test]
fn what_a_program_leaves_behind_dies_with_it() {
    let source = "import os, time\nif os.fork() == 0:\n    try: os.setsid()\n    except OSError: pass\n\
                  \x20   if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\nprint('ended')";
    in_every_way(&limits(), &marked(source, "arges-daemon"), |report| {
        assert_eq!((report.stdout.as_str(), report.outcome), ("ended\n", Outcome::Ok));
        assert!(report.seconds < 8.0);
        assert_gone("arges-daemon");
    });
}

const ORPHAN: &str = "arges-orphan";

/// The host that the next test kills.
#[test]
#[ignore = "run by another test"]
fn a_host_waits_for_a_sleeping_program() {
    let program = marked("import time\ntime.sleep(60)", ORPHAN);
    Sandbox { limits: Limits { wall: Duration::from_secs(5), ..limits() }, policy: None }
        .run(&program)
        .unwrap();
}

#[test]
fn a_program_dies_with_its_host() {
    let mut policies = vec!["limits"];
    policies.extend(available().is_ok().then_some("namespaces"));
    for policy in policies {
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_host_waits_for_a_sleeping_program", "--ignored"])
            .env("ARGES_SANDBOX", policy)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !is_running(ORPHAN) {
            assert!(started.elapsed() < Duration::from_secs(5), "{policy}");
        }
        host.kill().unwrap();
        host.wait().unwrap();
        assert_gone(ORPHAN);
        assert!(started.elapsed() < Duration::from_secs(5), "{policy}: it ended by its limit, perhaps");
    }
}

#[test]
fn closed_and_unread_input_holds_nothing_up() {
    let long = "x".repeat(1 << 20);
    for source in ["import os\nos.close(0)\nprint(1)", "print(1)", "import sys\nsys.stdin.read(10)\nprint(1)"]
    {
        in_every_way(&limits(), &Program::python(source).with_stdin(long.as_str()), |report| {
            assert_eq!((report.stdout.as_str(), report.outcome), ("1\n", Outcome::Ok), "{report:?}");
        });
    }
    let echo =
        Program::python("import sys\nx = sys.stdin.read()\nprint(len(x))\nprint(x[:30000])").with_stdin(long);
    in_every_way(&limits(), &echo, |report| {
        assert!(report.stdout.starts_with("1048576\n") && report.outcome == Outcome::Ok, "{report:?}");
    });
    let closed = Program::python("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(0.05)\nos._exit(7)");
    in_every_way(&limits(), &closed, |report| assert_eq!(report.outcome, Outcome::Exit(7)));
}

#[test]
fn forbidden_system_calls_fail() {
    // unshare, mount, bpf, keyctl, io_uring_setup, memfd_create, perf_event_open; on x86-64, where they are tried.
    let source = "import ctypes, platform\nlibc = ctypes.CDLL(None, use_errno=True)\n\
                  numbers = [272, 165, 321, 250, 425, 319, 298] if platform.machine() == 'x86_64' else []\n\
                  print([n for n in numbers if libc.syscall(n, 0x10000000, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1])";
    prints(source, "[]");
}

#[test]
fn signals_and_cpu_time_are_told() {
    in_every_way(&limits(), &Program::python("import ctypes\nctypes.string_at(0)"), |report| {
        assert_eq!(report.outcome, Outcome::Signal(11), "{report:?}");
    });
    let source = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1000))\nwhile True: pass";
    let program = Program::python(source);
    in_every_way(&Limits { cpu: 1, ..limits() }, &program, |report| {
        assert!(matches!(report.outcome, Outcome::CpuTime | Outcome::Exit(1)), "{report:?}");
    });
}

#[test]
fn several_run_at_once() {
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || prints(&format!("print({number})"), &number.to_string()));
        }
    });
}
