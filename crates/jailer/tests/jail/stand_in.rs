//! What runs in the VMM's place: it answers as a VMM does, and then does what the test tells it, as a VMM that a
//! guest has taken over could.

use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::ExitCode;

/// Socket on which orders come, one per line; each is answered by one line.
pub const ORDERS: &str = "orders.sock";

/// File names of the program in the VMM's place: on the host, and in the jail.
pub const NAMES: [&str; 2] = ["vmm", "firecracker"];

pub fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--api-sock") {
        println!("Firecracker v1.15.0");
        return ExitCode::SUCCESS;
    }
    let api = UnixListener::bind("api.socket").expect("the API socket");
    let orders = UnixListener::bind(ORDERS).expect("the socket for orders");
    std::thread::spawn(move || {
        for stream in api.incoming().flatten() {
            std::thread::spawn(move || answer_api(stream));
        }
    });
    // What is too long shall be an error, not the end.
    // SAFETY: ignoring a signal touches no memory.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    println!("ready");
    for stream in orders.incoming().flatten() {
        std::thread::spawn(move || obey(stream));
    }
    ExitCode::SUCCESS
}

/// Says which version it is, whatever the request.
fn answer_api(stream: UnixStream) {
    let mut writer = stream.try_clone().expect("a second descriptor");
    let mut lines = BufReader::new(stream).lines();
    let mut in_request = false;
    while let Some(Ok(line)) = lines.next() {
        if !line.is_empty() {
            in_request = true;
        } else if in_request {
            in_request = false;
            let body = r#"{"app_name":"Firecracker","id":"x","state":"Not started","vmm_version":"1.15.0","firecracker_version":"1.15.0"}"#;
            let length = body.len();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json";
            if write!(writer, "{head}\r\nContent-Length: {length}\r\n\r\n{body}").is_err() {
                return;
            }
        }
    }
}

fn obey(stream: UnixStream) {
    let mut writer = stream.try_clone().expect("a second descriptor");
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let words: Vec<_> = line.split(' ').collect();
        let answer = match attempt(&words) {
            Ok(text) => format!("ok {text}"),
            Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
        };
        if writeln!(writer, "{}", answer.trim_end().replace('\n', "|")).is_err() {
            return;
        }
    }
}

/// Does one thing; the answer is what came of it.
fn attempt(words: &[&str]) -> io::Result<String> {
    match *words {
        ["read", path] => beginning(path),
        ["write", path, text] => fs::write(path, text).map(|()| String::new()),
        ["open-rw", path] => opened(path),
        ["extend", path, length] => extend(path, length),
        ["list", path] => list(path),
        ["remove", path] => fs::remove_file(path).map(|()| String::new()),
        ["rename", from, to] => fs::rename(from, to).map(|()| String::new()),
        ["symlink", to, path] => std::os::unix::fs::symlink(to, path).map(|()| String::new()),
        ["connect", path] => UnixStream::connect(path).map(|_| String::new()),
        ["abstract", name] => {
            let address = SocketAddr::from_abstract_name(name)?;
            UnixStream::connect_addr(&address).map(|_| String::new())
        }
        ["tcp", address] => std::net::TcpStream::connect(address).map(|_| String::new()),
        ["fill"] => Ok(fill().to_string()),
        ["forks"] => Ok(forks().to_string()),
        ["pid"] => Ok(std::process::id().to_string()),
        ["ids"] => fs::read_to_string("/proc/self/status"),
        _ => system_call(words),
    }
}

/// The text at the beginning of a file or device.
fn beginning(path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(4096).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.trim_end_matches('\0').to_owned())
}

fn opened(path: &str) -> io::Result<String> {
    let mut options = fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .open(path)
        .map(|_| String::new())
}

/// Writes one byte so that the file has `length` bytes at least.
fn extend(path: &str, length: &str) -> io::Result<String> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    let last = length.parse::<u64>().expect("a number") - 1;
    file.write_at(b"x", last).map(|count| count.to_string())
}

fn list(path: &str) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names.join(","))
}

/// Writes files until nothing more fits, and answers how many bytes did.
fn fill() -> u64 {
    let mut written = 0;
    let chunk = vec![b'x'; 64 << 10];
    for number in 0..1000 {
        let Ok(mut file) = fs::File::create(format!("/fill{number}")) else {
            break;
        };
        // A bound of the test's own, should nothing else stop it.
        while written < 1 << 30 {
            match file.write(&chunk) {
                Ok(more @ 1..) => written += more as u64,
                _ => break,
            }
        }
    }
    for number in 0..1000 {
        let _ = fs::remove_file(format!("/fill{number}"));
    }
    written
}

/// Makes processes until no more can be made, and answers how many there were.
fn forks() -> usize {
    let mut children = Vec::new();
    // A bound of the test's own, should nothing else stop it.
    while children.len() < 5000 {
        // SAFETY: the child only sleeps until it is killed.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            },
            child @ 1.. => children.push(child),
            _ => break,
        }
    }
    for child in &children {
        // SAFETY: a child of ours that nobody has waited for.
        unsafe {
            libc::kill(*child, libc::SIGKILL);
            libc::waitpid(*child, std::ptr::null_mut(), 0);
        }
    }
    children.len()
}

fn system_call(words: &[&str]) -> io::Result<String> {
    let text = |at: usize| CString::new(words.get(at).copied().unwrap_or_default());
    let number =
        |at: usize| -> libc::c_int { words.get(at).and_then(|it| it.parse().ok()).unwrap_or(0) };
    let (first, second) = (text(1)?, text(2)?);
    let (first, second) = (first.as_ptr(), second.as_ptr());
    let none: *const libc::c_char = std::ptr::null();
    // SAFETY: strings end with NUL and live to the end of the call; the other pointers are null.
    let result = unsafe {
        match words.first().copied().unwrap_or_default() {
            "kill" => i64::from(libc::kill(number(1), libc::SIGKILL)),
            "ptrace" => libc::ptrace(libc::PTRACE_SEIZE, number(1), 0, 0),
            "socket" => i64::from(libc::socket(number(1), number(2), 0)),
            "mknod" => {
                let mode = libc::S_IFBLK | 0o600;
                i64::from(libc::mknod(first, mode, libc::makedev(8, 0)))
            }
            "mknod-char" => {
                let mode = libc::S_IFCHR | 0o600;
                i64::from(libc::mknod(first, mode, libc::makedev(1, 1)))
            }
            "mount" => i64::from(libc::mount(
                first,
                second,
                c"tmpfs".as_ptr(),
                0,
                none.cast(),
            )),
            "bind-mount" => i64::from(libc::mount(first, second, none, libc::MS_BIND, none.cast())),
            "remount-rw" => {
                let flags = libc::MS_REMOUNT | libc::MS_BIND;
                i64::from(libc::mount(none, first, none, flags, none.cast()))
            }
            "umount" => i64::from(libc::umount2(first, libc::MNT_DETACH)),
            "chroot" => i64::from(libc::chroot(first)),
            "unshare" => i64::from(libc::unshare(number(1))),
            "setns" => {
                let file = fs::File::open(words.get(1).copied().unwrap_or_default())?;
                i64::from(libc::setns(file.as_raw_fd(), 0))
            }
            "setuid" => i64::from(libc::setuid(0)),
            "setgid" => i64::from(libc::setgid(0)),
            "chown" => i64::from(libc::chown(first, 0, 0)),
            "chmod" => i64::from(libc::chmod(first, 0o7777)),
            "bpf" => libc::syscall(libc::SYS_bpf, 0, 0, 0),
            "perf" => libc::syscall(libc::SYS_perf_event_open, 0, 0, -1, -1, 0),
            "io_uring" => libc::syscall(libc::SYS_io_uring_setup, 1, 0),
            "keyctl" => libc::syscall(libc::SYS_keyctl, 0, -3, 0),
            "userfaultfd" => libc::syscall(libc::SYS_userfaultfd, 0),
            "reboot" => libc::syscall(libc::SYS_reboot, 0, 0, 0, 0),
            "open_by_handle" => libc::syscall(libc::SYS_open_by_handle_at, 3, 0, 0),
            "clone3" => libc::syscall(libc::SYS_clone3, 0, 0),
            "process_vm_readv" => {
                libc::syscall(libc::SYS_process_vm_readv, number(1), 0, 0, 0, 0, 0)
            }
            other => panic!("no such order: {other}"),
        }
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result.to_string())
    }
}

/// The host's end of the socket for orders.
pub struct Orders {
    stream: BufReader<UnixStream>,
}

impl Orders {
    pub fn connect(root: &std::path::Path) -> Self {
        let stream = UnixStream::connect(root.join(ORDERS)).expect("the stand-in listens");
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// What came of an order: text, or an error number.
    pub fn give(&mut self, order: &str) -> Result<String, i32> {
        writeln!(self.stream.get_mut(), "{order}").expect("the stand-in lives");
        let mut line = String::new();
        let mut limited = self.stream.by_ref().take(1 << 20);
        limited.read_line(&mut line).expect("the stand-in answers");
        let line = line.trim_end();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("ok", text) => Ok(text.to_owned()),
            ("error", number) => Err(number.parse().expect("a number")),
            _ => panic!("{order}: {line:?}"),
        }
    }
}
