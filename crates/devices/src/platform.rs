//! Where everything lies in a machine's address spaces.
