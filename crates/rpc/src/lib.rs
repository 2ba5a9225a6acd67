//! ttrpc as our programs on the host use it: [`client`] calls over Unix sockets,
//! [`incoming`] says who may call, [`events`] go to containerd. What is said in
//! the calls is not this crate's business.

pub mod client;
pub mod events;
pub mod incoming;
