//! Power-off, reset and the power button.
