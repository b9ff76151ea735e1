//! Control messages of a console with several ports (virtio 1.2, 5.3.6.2).

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Event {
    /// Driver: it is ready.
    DeviceReady = 0,
    /// Device: there is a port.
    DeviceAdd = 1,
    /// Device: there is no such port any more.
    DeviceRemove = 2,
    /// Driver: the port can be used.
    PortReady = 3,
    /// Device: the port is a console.
    ConsolePort = 4,
    /// Device: the console's size.
    Resize = 5,
    /// Both: the port was opened or closed.
    PortOpen = 6,
    /// Device: the port's name.
    PortName = 7,
}

impl Event {
    fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::DeviceReady,
            1 => Self::DeviceAdd,
            2 => Self::DeviceRemove,
            3 => Self::PortReady,
            4 => Self::ConsolePort,
            5 => Self::Resize,
            6 => Self::PortOpen,
            7 => Self::PortName,
            _ => return None,
        })
    }
}

/// `struct virtio_console_control`, 8 bytes, and what follows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    /// Which port.
    pub id: u32,
    /// What it says.
    pub event: Event,
    /// Depends on the event.
    pub value: u16,
    /// Depends on the event.
    pub rest: Vec<u8>,
}

impl Control {
    /// A message without anything behind it.
    pub fn new(id: u32, event: Event, value: u16) -> Self {
        Self {
            id,
            event,
            value,
            rest: Vec::new(),
        }
    }

    /// A port's name.
    pub fn name(id: u32, name: &str) -> Self {
        Self {
            rest: name.as_bytes().to_vec(),
            ..Self::new(id, Event::PortName, 1)
        }
    }

    /// A console's size in columns and rows. The specification's structure has
    /// columns first; Linux, in 6.1 and 6.12, reads rows first, and Linux is
    /// who reads it.
    pub fn resize(id: u32, (columns, rows): (u16, u16)) -> Self {
        let rest = [rows.to_le_bytes(), columns.to_le_bytes()].concat();
        Self {
            rest,
            ..Self::new(id, Event::Resize, 0)
        }
    }

    /// Reads a message of the driver; what follows it is not looked at.
    pub fn from_bytes(bytes: &[u8; 8]) -> Option<Self> {
        let [a, b, c, d, event0, event1, value0, value1] = *bytes;
        Some(Self::new(
            u32::from_le_bytes([a, b, c, d]),
            Event::from_number(u16::from_le_bytes([event0, event1]))?,
            u16::from_le_bytes([value0, value1]),
        ))
    }

    /// The message's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.rest.len());
        bytes.extend(self.id.to_le_bytes());
        bytes.extend((self.event as u16).to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.extend(&self.rest);
        bytes
    }
}
