//! What the network's thread may call: the way out is the host's own sockets.

use libc::{
    AF_INET, AF_INET6, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, O_ACCMODE, O_CREAT, O_RDONLY,
    SO_ERROR, SO_KEEPALIVE, SO_LINGER, SO_SNDBUF, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK,
    SOCK_RAW, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY,
};
use syscalls::Sysno;

use super::{Condition, Rule, allow, allow_when, bits_are, is, is_u32};

/// A socket of this family, type and protocol, whatever its flags.
const fn socket(family: i32, kind: i32, protocol: i32) -> [Condition; 3] {
    let flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
    [is(0, family), bits_are(1, !flags, kind), is(2, protocol)]
}

const RAW_ECHO: &str = "a host that gives no sockets for echoes, whose caller may have raw ones";

/// A network's plane.
pub const NETWORK: &[Rule] = &[
    allow(Sysno::epoll_pwait),
    allow(Sysno::epoll_ctl),
    allow(Sysno::timerfd_settime),
    allow(Sysno::read),
    // TCP, UDP, and echo requests.
    allow_when(Sysno::socket, &socket(AF_INET, SOCK_STREAM, 0)),
    allow_when(Sysno::socket, &socket(AF_INET, SOCK_DGRAM, 0)),
    allow_when(Sysno::socket, &socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)),
    allow_when(Sysno::socket, &socket(AF_INET6, SOCK_STREAM, 0)),
    allow_when(Sysno::socket, &socket(AF_INET6, SOCK_DGRAM, 0))
        .rarely("datagrams over IPv6, which the tests' guest has no tool for"),
    allow_when(Sysno::socket, &socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6)),
    // Where the host gives this user no sockets for echoes, but is root.
    allow_when(Sysno::socket, &socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)).rarely(RAW_ECHO),
    allow_when(Sysno::socket, &socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)).rarely(RAW_ECHO),
    allow(Sysno::bind),
    allow(Sysno::connect),
    allow(Sysno::accept4),
    allow(Sysno::recvfrom),
    allow(Sysno::sendto),
    allow(Sysno::sendmsg),
    allow(Sysno::shutdown)
        .rarely("a connection to a server; the tests' host may have no way to one"),
    allow(Sysno::getpeername)
        .rarely("a connection to a server; the tests' host may have no way to one"),
    allow_when(Sysno::getsockopt, &[is(1, SOL_SOCKET), is(2, SO_ERROR)]),
    allow_when(Sysno::setsockopt, &[is(1, IPPROTO_TCP), is(2, TCP_NODELAY)]),
    allow_when(Sysno::setsockopt, &[is(1, SOL_SOCKET), is(2, SO_KEEPALIVE)]),
    allow_when(Sysno::setsockopt, &[is(1, SOL_SOCKET), is(2, SO_LINGER)])
        .rarely("a connection that a guest resets"),
    allow_when(Sysno::setsockopt, &[is(1, SOL_SOCKET), is(2, SO_SNDBUF)])
        .rarely("another machine that joins the network after this one"),
    allow_when(Sysno::ioctl, &[is_u32(1, libc::FIONBIO as u32)]),
    // The host's resolvers, when they change.
    allow(Sysno::statx),
    allow_when(Sysno::openat, &[bits_are(2, O_ACCMODE | O_CREAT, O_RDONLY)]),
    // The socket other machines found this one by.
    allow(Sysno::unlink),
];
