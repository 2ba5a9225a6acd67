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

use crate::file_calls;

/// Socket on which orders come, one per line; each is answered by one line.
pub const ORDERS: &str = "orders.sock";

/// File names of the program in the VMM's place: on the host, and in the jail.
pub const NAMES: [&str; 2] = ["vmm", "firecracker"];

pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--api-sock");
    let Some(socket) = arguments.nth(1) else {
        println!("Firecracker v1.15.0");
        return ExitCode::SUCCESS;
    };
    let api = UnixListener::bind(socket).expect("the API socket");
    let orders = UnixListener::bind(ORDERS).expect("the socket for orders");
    // What is too long shall be an error, not the end.
    // SAFETY: ignoring a signal touches no memory.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // Before the API answers: from then on it may be killed.
    println!("ready");
    std::thread::spawn(move || {
        for stream in api.incoming().flatten() {
            std::thread::spawn(move || answer_api(stream));
        }
    });
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
        ["set-user-id", path] => file_calls::set_user_id(path).map(|()| String::new()),
        ["lease", path] => file_calls::lease(path).map(|()| String::new()),
        ["fallocate", path, mode, length] => {
            file_calls::fallocate(path, mode, length).map(|()| String::new())
        }
        ["reserve", path, length] => file_calls::reserve(path, length).map(|()| String::new()),
        ["skip-block", path] => file_calls::skip_block(path).map(|()| String::new()),
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
    // SAFETY: strings end with NUL and live to the end of the call, and so do structures, which have the size that
    // the call reads; the other pointers are null.
    let result = unsafe {
        match words.first().copied().unwrap_or_default() {
            "kill" => i64::from(libc::kill(number(1), libc::SIGKILL)),
            "ptrace" => libc::ptrace(libc::PTRACE_SEIZE, number(1), 0, 0),
            "socket" => i64::from(libc::socket(number(1), number(2), number(3))),
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
            "chmod" => i64::from(libc::chmod(first, 0o777)),
            "bpf" => {
                // BPF_MAP_CREATE of an array: type, size of a key and of a value, number of values.
                let mut attributes = [0_u32; 32];
                attributes[..4].copy_from_slice(&[2, 4, 4, 1]);
                let size = size_of_val(&attributes);
                libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size)
            }
            "perf" => {
                // PERF_TYPE_SOFTWARE, the structure's size; the counter is PERF_COUNT_SW_CPU_CLOCK.
                let mut attributes = [0_u32; 16];
                attributes[..2].copy_from_slice(&[1, 64]);
                // exclude_kernel and exclude_hv, for which nobody needs privileges.
                attributes[10] = 0b110_0000;
                let attributes = attributes.as_ptr();
                libc::syscall(libc::SYS_perf_event_open, attributes, 0, -1, -1, 0)
            }
            "io_uring" => {
                let mut parameters = [0_u32; 30];
                libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr())
            }
            "keyctl" => libc::syscall(libc::SYS_keyctl, 0, -3, 0),
            // UFFD_USER_MODE_ONLY, for which nobody needs privileges.
            "userfaultfd" => libc::syscall(libc::SYS_userfaultfd, 1),
            "reboot" => {
                // Ctrl-Alt-Del shall be a signal to init: what does least.
                let (one, two) = (libc::LINUX_REBOOT_MAGIC1, libc::LINUX_REBOOT_MAGIC2);
                libc::syscall(
                    libc::SYS_reboot,
                    one,
                    two,
                    libc::LINUX_REBOOT_CMD_CAD_OFF,
                    0,
                )
            }
            "open_by_handle" => {
                // A handle of eight bytes, of type 1: inode and generation.
                let handle = [8_u32, 1, 2, 0];
                let (directory, handle) = (libc::AT_FDCWD, handle.as_ptr());
                libc::syscall(
                    libc::SYS_open_by_handle_at,
                    directory,
                    handle,
                    libc::O_RDONLY,
                )
            }
            "clone3" => clone3(),
            "process_vm_readv" => {
                let from = [1_u8; 8];
                let mut to = [0_u8; 8];
                let local = libc::iovec {
                    iov_base: to.as_mut_ptr().cast(),
                    iov_len: to.len(),
                };
                let remote = libc::iovec {
                    iov_base: from.as_ptr().cast_mut().cast(),
                    iov_len: from.len(),
                };
                libc::process_vm_readv(number(1), &raw const local, 1, &raw const remote, 1, 0)
                    as i64
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

/// A child that ends at once; answers its number, or -1.
fn clone3() -> libc::c_long {
    // Of `struct clone_args`, only the signal at the end is needed.
    let mut arguments = [0_u64; 8];
    arguments[4] = u64::from(libc::SIGCHLD.unsigned_abs());
    let size = size_of_val(&arguments);
    // SAFETY: the structure is as long as said; the child, which has a copy of all memory, only ends.
    let child = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size) };
    if child == 0 {
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(0) };
    }
    if let Ok(pid @ 1..) = libc::pid_t::try_from(child) {
        // SAFETY: a child of ours that nobody has waited for.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
    child
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
