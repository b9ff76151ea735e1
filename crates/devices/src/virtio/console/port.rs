//! One port of a console: its backend and how far both sides have opened it.

use std::io;

use serde::{Deserialize, Serialize};

use super::super::queue::{Chain, Virtqueue, read_segments, write_segments};
use super::super::worker::{Context, Interest};
use super::backend::PortBackend;
use super::control::{Control, Event};

/// Bytes moved at once.
const CHUNK: usize = 4096;
/// Chunks moved before anything else has its turn.
const CHUNKS_PER_STEP: usize = 16;

/// Control messages the port owes the guest. Flags, not a queue: a guest that
/// asks a thousand times gets one answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Owed {
    /// The port exists.
    pub add: bool,
    /// It is a console.
    pub console: bool,
    /// Its size.
    pub resize: bool,
    /// Its name.
    pub name: bool,
    /// Whether the host's side is open.
    pub open: bool,
}

/// See the module.
pub struct Port {
    /// The name in the guest (`/dev/virtio-ports/<name>`).
    pub name: Option<String>,
    /// A console (hvc), rather than a plain stream.
    pub is_console: bool,
    /// Somebody in the guest has it open.
    pub guest_open: bool,
    /// What is to be told.
    pub owed: Owed,
    backend: Box<dyn PortBackend>,
    readable: bool,
    writable: bool,
    ended: bool,
    /// Bytes of the next chain of the transmit queue that are written already.
    pub transmitted: u64,
}

/// What stopped a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Something outside has to happen first.
    Waiting,
    /// It had its turn; there may be more.
    More,
}

impl Port {
    /// A port in its reset state.
    pub fn new(name: Option<String>, is_console: bool, backend: Box<dyn PortBackend>) -> Self {
        Self {
            name,
            is_console,
            guest_open: false,
            owed: Owed::default(),
            backend,
            readable: false,
            writable: true,
            ended: false,
            transmitted: 0,
        }
    }

    /// Starts to watch the backend. Tokens are twice the port's number for the
    /// input and one more for the output.
    pub fn watch(&mut self, token: u64, context: &Context) -> io::Result<()> {
        let changes = Interest::CHANGES;
        if let Some(input) = self.backend.input() {
            let interest = Interest {
                writable: false,
                ..changes
            };
            match context.watch(input, token, interest) {
                Ok(()) => {}
                // A regular file: always ready.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.readable = true;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(output) = self.backend.output() {
            let interest = Interest {
                readable: false,
                ..changes
            };
            match context.watch(output, token + 1, interest) {
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The input has something, or its end.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// The output takes bytes again, or will never again.
    pub fn set_writable(&mut self) {
        self.writable = true;
    }

    /// Whether the host's side is open.
    pub fn is_host_open(&self) -> bool {
        !self.ended
    }

    /// The guest's side opened or closed.
    pub fn set_guest_open(&mut self, open: bool) {
        if std::mem::replace(&mut self.guest_open, open) != open {
            self.backend.guest_open(open);
        }
    }

    /// Back to how it was before a driver came. The backend stays connected.
    pub fn reset(&mut self) {
        self.set_guest_open(false);
        self.owed = Owed::default();
        self.transmitted = 0;
    }

    /// Host to guest.
    pub fn receive(&mut self, queue: &mut Virtqueue) -> Progress {
        for _ in 0..CHUNKS_PER_STEP {
            if !self.readable || self.ended || !self.guest_open {
                return Progress::Waiting;
            }
            let Some(chain) = queue.pop() else {
                return Progress::Waiting;
            };
            let mut bytes = [0; CHUNK];
            let room = chain.writable_bytes().min(CHUNK as u64) as usize;
            if room == 0 {
                queue.add_used(chain, 0);
                continue;
            }
            match self.backend.read(&mut bytes[..room]) {
                Ok(0) => {
                    self.end();
                    queue.unpop(chain);
                }
                Ok(count) => {
                    let count = count.min(room);
                    write_segments(queue.memory(), chain.writable(), 0, &bytes[..count]);
                    queue.add_used(chain, count as u32);
                }
                Err(error) => {
                    queue.unpop(chain);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => self.readable = false,
                        io::ErrorKind::Interrupted => {}
                        _ => self.end(),
                    }
                }
            }
        }
        Progress::More
    }

    /// Guest to host.
    pub fn transmit(&mut self, queue: &mut Virtqueue) -> Progress {
        for _ in 0..CHUNKS_PER_STEP {
            if !self.writable {
                return Progress::Waiting;
            }
            let Some(chain) = queue.pop() else {
                return Progress::Waiting;
            };
            self.transmit_chunk(queue, chain);
        }
        Progress::More
    }

    fn transmit_chunk(&mut self, queue: &mut Virtqueue, chain: Chain) {
        let mut bytes = [0; CHUNK];
        let got = read_segments(
            queue.memory(),
            chain.readable(),
            self.transmitted,
            &mut bytes,
        );
        let written = match self.backend.write(&bytes[..got]) {
            Ok(count) => count.min(got) as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            // Nobody reads it any more: it is gone, as on an open wire.
            Err(_) => got as u64,
        };
        self.transmitted += written;
        if self.transmitted >= chain.readable_bytes() {
            self.transmitted = 0;
            queue.add_used(chain, 0);
        } else {
            queue.unpop(chain);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.readable = false;
        if !self.is_console {
            self.owed.open = true;
        }
    }

    /// The next control message that is owed, in the order a driver expects.
    pub fn next_control(&self, id: u32, size: (u16, u16)) -> Option<Control> {
        let message = |event, value| Some(Control::new(id, event, value));
        if self.owed.add {
            message(Event::DeviceAdd, 1)
        } else if self.owed.console {
            message(Event::ConsolePort, 1)
        } else if self.owed.resize {
            Some(Control::resize(id, size))
        } else if self.owed.name {
            let name = self.name.clone().unwrap_or_default();
            Some(Control::name(id, &name))
        } else if self.owed.open {
            message(Event::PortOpen, u16::from(self.is_host_open()))
        } else {
            None
        }
    }

    /// The message was delivered.
    pub fn control_sent(&mut self, event: Event) {
        match event {
            Event::DeviceAdd => self.owed.add = false,
            Event::ConsolePort => self.owed.console = false,
            Event::Resize => self.owed.resize = false,
            Event::PortName => self.owed.name = false,
            Event::PortOpen => self.owed.open = false,
            Event::DeviceReady | Event::DeviceRemove | Event::PortReady => {}
        }
    }
}
