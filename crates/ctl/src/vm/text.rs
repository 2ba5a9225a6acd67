//! `vm console` and `vm logs`: text that a VM's shim keeps.

use clap::Args;
use fc_client::text::excerpt;
use fc_proto::vm::{ReadRequest, Stream};

use super::Id;
use crate::error::CtlError;
use crate::host::{Host, vm_client};
use crate::output::emit;

/// How long one call waits for a new line, in milliseconds.
const WAIT_MS: u32 = 30_000;

/// Which VM's text.
#[derive(Debug, Args)]
pub struct TextArgs {
    #[command(flatten)]
    vm: Id,
    /// Go on until the VM ends.
    #[arg(long, short)]
    follow: bool,
}

/// Which VM's log.
#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    text: TextArgs,
    /// The VMM's log instead of the shim's.
    #[arg(long)]
    vmm: bool,
}

/// Prints the guest's console.
///
/// # Errors
/// When the VM's shim cannot be asked.
pub async fn console(host: &Host, args: &TextArgs) -> Result<(), CtlError> {
    print(host, args, Stream::CONSOLE).await
}

/// Prints a log.
///
/// # Errors
/// When the VM's shim cannot be asked.
pub async fn logs(host: &Host, args: &LogsArgs) -> Result<(), CtlError> {
    let stream = if args.vmm {
        Stream::VMM_LOG
    } else {
        Stream::SHIM_LOG
    };
    print(host, &args.text, stream).await
}

async fn print(host: &Host, args: &TextArgs, stream: Stream) -> Result<(), CtlError> {
    let client = vm_client(&host.find(&args.vm.id)?).await?;
    let mut after = 0;
    loop {
        let request = ReadRequest {
            stream: stream.into(),
            after,
            wait_ms: if args.follow { WAIT_MS } else { 0 },
            ..ReadRequest::default()
        };
        let answer = match client.read(host.context(), &request).await {
            Ok(answer) => answer,
            // The shim goes with its VM.
            Err(fc_proto::ttrpc::Error::RpcStatus(status)) => {
                return Err(CtlError::call(
                    "The VM's shim",
                    fc_proto::ttrpc::Error::RpcStatus(status),
                ));
            }
            Err(_) if args.follow => return Ok(()),
            Err(error) => return Err(CtlError::call("The VM's shim", error)),
        };
        if answer.lost > 0 {
            eprintln!("firecracker-ctl: {} older lines are not kept", answer.lost);
        }
        for line in &answer.lines {
            emit(&excerpt(line));
        }
        let more = answer.last > after;
        after = answer.last;
        if answer.ended || (!args.follow && !more) {
            return Ok(());
        }
    }
}
