//! Choosing one of a family of generic handlers.

/// The handler for an operand of 1, 2, 4 or 8 bytes.
macro_rules! by_bytes {
    ($width:expr, $($path:ident)::+) => {
        match $width {
            1 => $($path)::+::<u8> as Handler,
            2 => $($path)::+::<u16>,
            4 => $($path)::+::<u32>,
            _ => $($path)::+::<u64>,
        }
    };
    ($width:expr, $($path:ident)::+, $flag:expr) => {
        match ($width, $flag) {
            (1, false) => $($path)::+::<u8, false> as Handler,
            (1, true) => $($path)::+::<u8, true>,
            (2, false) => $($path)::+::<u16, false>,
            (2, true) => $($path)::+::<u16, true>,
            (4, false) => $($path)::+::<u32, false>,
            (4, true) => $($path)::+::<u32, true>,
            (_, false) => $($path)::+::<u64, false>,
            (_, true) => $($path)::+::<u64, true>,
        }
    };
}

/// The same for families without a byte form.
macro_rules! by_word {
    ($width:expr, $($path:ident)::+) => {
        match $width {
            2 => $($path)::+::<u16> as Handler,
            4 => $($path)::+::<u32>,
            _ => $($path)::+::<u64>,
        }
    };
}

/// A handler with one constant flag.
macro_rules! by_flag {
    ($flag:expr, $($path:ident)::+) => {
        if $flag { $($path)::+::<true> as Handler } else { $($path)::+::<false> }
    };
}

pub(super) use {by_bytes, by_flag, by_word};
