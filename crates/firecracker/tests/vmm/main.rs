//! The client and the process, with stand-ins for a VMM. Against a real one they are tested where VMs are booted.

mod api;
mod attach;
mod process;
mod server;
