//! Mounts of a container's spec become drives, with real mkfs programs and real mounts.

mod copies;
mod host;
mod images;
mod set;
