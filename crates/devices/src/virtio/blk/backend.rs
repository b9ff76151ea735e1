//! What a block device needs of a disk: [`favo_block`]'s traits, by the names
//! the device and its tests use.

pub use favo_block::{
    BlockCompletion, BlockDevice, BlockInfo, BlockOperation, BlockQueue, RawBuffer,
};
