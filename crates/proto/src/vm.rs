//! Our own service on a VM's control socket: what people want to see of a VM.

pub use crate::generated::vm::{
    ReadRequest, ReadResponse, Slot, Span, StatusResponse, Stream, Task,
};
pub use crate::generated::vm_ttrpc::{Vm, VmClient, create_vm};
