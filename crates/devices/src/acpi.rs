//! The ACPI tables that describe the machine to its guest.
