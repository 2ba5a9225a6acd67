//! One microVM's life on the host: its names, its lock, its shim's start, its
//! boot and its end. It knows nothing of bundles, tasks or containerd.
//!
//! - [`ident`], [`address`], [`dir`]: how a VM is named, reached and laid out.
//! - [`lock`], [`launch`]: what makes a VM unique, and how its shim is started.
//! - [`list`], [`state`]: which VMs a host has, and what must be undone after a shim was killed.
//! - [`guest_image`]: what is known of a root image before it boots.
//! - [`machine`]: from a request to a running VM whose agent answers, and its stop.
//! - [`answer`]: what CreateVM is answered with.
//! - [`timeline`]: the phase table's events.

pub mod address;
pub mod answer;
pub mod dir;
pub mod guest_image;
pub mod ident;
pub mod launch;
pub mod list;
pub mod lock;
pub mod machine;
pub mod process;
mod spawn;
pub mod state;
pub mod timeline;
