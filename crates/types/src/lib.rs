//! Names, ids, sizes and addresses that every room of favo shares.
//!
//! This crate is pure: no I/O, no clock, no threads. A number that crosses a
//! crate boundary is one of these types, so that a guest address can't be
//! handed to something that wants a byte count.
#![forbid(unsafe_code)]

mod address;
mod byte_count;
mod name;

pub use address::GuestAddress;
pub use byte_count::{ByteCount, ParseByteCountError};
pub use name::{Name, NameError};
