//! The guest agent: command line, set-up as PID 1, and the machine's end. All else is in the library.

use fc_agent::args::Args;
use fc_agent::configure::{VERSION, boottime_ns};
use fc_agent::machine::Role;
use fc_agent::{log, pid1, say, server, volume_init};
use fc_errors::chain;

/// Set by our initrd: when it started, `CLOCK_BOOTTIME` in nanoseconds.
const INIT_TIME_ENV: &str = "FC_INIT_BOOTTIME_NS";
/// Stack of the threads that wait for disks; they do little else.
const THREAD_STACK: usize = 256 * 1024;
/// How many of them there may be; more disks wait for each other.
const MAX_THREADS: usize = 4;

fn main() {
    // Before anything else: a container's first process, too, has the number 1.
    if std::env::args_os()
        .next()
        .is_some_and(|name| volume_init::is_called(&name))
    {
        std::process::exit(volume_init::run());
    }
    let started = boottime_ns();
    let init = std::process::id() == 1;
    if init {
        pid1::end_machine_on_panic();
    }
    let args = match Args::parse(std::env::args().skip(1), init) {
        Ok(args) => args,
        Err(error) => {
            say!("{error}");
            std::process::exit(2);
        }
    };
    if args.version {
        println!("firecracker-agent {VERSION}");
        return;
    }
    if args.debug {
        log::enable_debug();
    }
    let role = match (&args.test_dir, init) {
        (Some(_), _) => Role::Test,
        (None, true) => Role::Init,
        (None, false) => Role::Service,
    };
    let set_up = if role == Role::Init {
        pid1::set_up(&args.cgroup_parent)
    } else {
        Ok(())
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_stack_size(THREAD_STACK)
        .max_blocking_threads(MAX_THREADS)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("Cannot start: {error}");
            role.end(1);
        }
    };
    let result = runtime.block_on(async {
        match set_up {
            Ok(()) => server::run(&args, role, marks(started))
                .await
                .map_err(|error| chain(&error)),
            Err(error) => {
                let message = chain(&error);
                server::announce_failure(message.clone()).await;
                Err(message)
            }
        }
    });
    match result {
        Ok(()) => role.end(0),
        Err(message) => {
            say!("{message}");
            role.end(1);
        }
    }
}

/// The boot until now.
fn marks(started: u64) -> Vec<(&'static str, u64)> {
    let init = std::env::var(INIT_TIME_ENV)
        .ok()
        .and_then(|time| time.parse().ok());
    init.map(|time| ("init", time))
        .into_iter()
        .chain([("agent", started)])
        .collect()
}
