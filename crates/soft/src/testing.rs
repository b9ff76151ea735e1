//! A processor with a little memory, for tests.
