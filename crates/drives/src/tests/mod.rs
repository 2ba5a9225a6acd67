//! What the slots promise, with a VMM, a jail and a guest that are not real.

mod attach;
mod fake;
mod held;
mod hot_plug;
mod interleaving;
mod slots;
