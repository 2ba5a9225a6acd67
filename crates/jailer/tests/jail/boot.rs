pub const TESTS: &[(&str, crate::Test)] = &[];
