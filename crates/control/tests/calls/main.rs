//! The control service with stand-ins for shims, as daemon and without one. What a VM does is in
//! the end-to-end tests; here is what the service makes of shims that answer, fail, hang and die.

mod answers;
mod ends;
mod program;
mod setup;
mod shared;
mod stand_in;

use libtest_mimic::{Arguments, Trial};

/// A test, and a runtime for it.
type Test = fn(&tokio::runtime::Runtime);

/// Makes a list of tests of async functions.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[(&str, crate::Test)] = &[
            $((concat!(module_path!(), "::", stringify!($name)), |rt| rt.block_on($name()))),*
        ];
    };
}
pub(crate) use tests;

fn main() {
    // Before anything of a test program: a stand-in is this very program.
    if stand_in::is_asked_for() {
        return stand_in::run();
    }
    let all = answers::TESTS
        .iter()
        .chain(ends::TESTS)
        .chain(program::TESTS)
        .chain(shared::TESTS);
    let trials = all.map(|(name, test)| {
        let test = *test;
        let name = name.trim_start_matches("calls::");
        Trial::test(name, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            test(&runtime);
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
