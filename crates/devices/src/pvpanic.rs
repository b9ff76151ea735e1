//! The device a guest tells of its own panic.
