//! The I/O APIC.
