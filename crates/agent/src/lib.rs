//! The protocol between favo and its agent in the guest.
