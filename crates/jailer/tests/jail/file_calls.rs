//! What the owner of a file, or who may write to it, can do to it besides reading and writing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// ioctl_fs(2): like fallocate(2) with `FALLOC_FL_KEEP_SIZE`, on every file system (`linux/falloc.h`).
const FS_IOC_RESVSP: libc::Ioctl = 0x4030_5828;
/// loop(4).
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
/// Length of `struct loop_info64` in eight bytes, and where in it the offset in the backing file is.
const LOOP_INFO: usize = 29;
const LOOP_OFFSET: usize = 3;

fn outcome(result: i64) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(word: &str) -> T {
    word.parse().expect("a number")
}

fn writable(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Makes a program of the file that runs as its owner on the host.
pub fn set_user_id(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open.
    outcome(unsafe { libc::fchmod(file.as_raw_fd(), 0o4755) }.into())
}

/// Makes whoever opens the file wait, until the kernel takes the lease away (`/proc/sys/fs/lease-break-time`).
pub fn lease(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    // Of the command, which is an `int`, the kernel takes the lower half only; a filter sees all of it.
    let command = libc::c_long::from(libc::F_SETLEASE) | 1 << 32;
    let descriptor = libc::c_long::from(file.as_raw_fd());
    let kind = libc::c_long::from(libc::F_RDLCK);
    // SAFETY: the arguments are numbers, and the descriptor is open.
    outcome(unsafe { libc::syscall(libc::SYS_fcntl, descriptor, command, kind) })
}

/// fallocate(2) from the file's beginning.
pub fn fallocate(path: &str, mode: &str, length: &str) -> io::Result<()> {
    let file = writable(path)?;
    // SAFETY: the arguments are numbers, and the descriptor is open.
    outcome(unsafe { libc::fallocate(file.as_raw_fd(), number(mode), 0, number(length)) }.into())
}

/// Takes blocks of the file system for the file, beyond its end too.
pub fn reserve(path: &str, length: &str) -> io::Result<()> {
    let file = writable(path)?;
    // `struct space_resv`: two numbers of 16 bits, start and length, and what is not read.
    let space = [0_i64, 0, number(length), 0, 0, 0];
    // SAFETY: the structure is as long as the call's number says.
    outcome(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_RESVSP, space.as_ptr()) }.into())
}

/// Makes a loop device begin one block later in its backing file.
pub fn skip_block(path: &str) -> io::Result<()> {
    let file = writable(path)?;
    let mut info = [0_u64; LOOP_INFO];
    // SAFETY: the structure is as long as `struct loop_info64`.
    outcome(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) }.into())?;
    info[LOOP_OFFSET] += 512;
    // SAFETY: likewise.
    outcome(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_SET_STATUS64, info.as_ptr()) }.into())
}
