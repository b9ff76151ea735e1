//! Virtio console (virtio 1.2, 5.3): a terminal, and named byte streams.
//!
//! A device with a single unnamed console port is a plain console: its size
//! stands in the configuration space. Any other device is a multi-port one:
//! each port is announced with control messages, and one that is no console
//! appears in the guest as `/dev/virtio-ports/<name>`.
//!
//! [`backend`] is what a port is connected to on the host, [`port`] one port,
//! [`control`] the messages. Nothing is buffered here: bytes wait in the
//! guest's buffers or in the host's descriptors.

pub mod backend;
pub mod control;
pub mod port;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::device::{
    DeviceError, DeviceState, DeviceType, QueueResources, VirtioDevice, read_config_bytes,
};
use super::queue::{QueueCounters, QueueState, Virtqueue, read_segments, write_segments};
use super::worker::{Context, Handler, Readiness, Worker};
use crate::state::StateError;
use backend::PortBackend;
use control::{Control, Event};
use port::{Owed, Port, Progress};

const NAME: &str = DeviceType::Console.name();
const QUEUE_SIZE: u16 = 128;
const STATE_VERSION: u32 = 1;

const F_SIZE: u64 = 1;
const F_MULTIPORT: u64 = 2;

const CONTROL_TO_GUEST: u16 = 2;
const CONTROL_FROM_GUEST: u16 = 3;
/// Control messages handled before anything else has its turn.
const MESSAGES_PER_STEP: usize = 16;
/// The most ports of one device.
pub const MAX_PORTS: usize = 32;

/// A port of a console.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// What the guest calls it, like `org.favo.agent.0`.
    #[serde(default)]
    pub name: Option<String>,
    /// A console (`/dev/hvc<n>`), not a plain stream.
    #[serde(default)]
    pub console: bool,
}

/// A console.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// Its ports.
    pub ports: Vec<PortSpec>,
    /// Columns and rows of the terminal.
    #[serde(default = "default_size")]
    pub size: (u16, u16),
}

fn default_size() -> (u16, u16) {
    (80, 24)
}

impl ConsoleSpec {
    /// A plain console, without other ports.
    pub fn plain() -> Self {
        Self {
            ports: vec![PortSpec {
                name: None,
                console: true,
            }],
            size: default_size(),
        }
    }

    fn is_multiport(&self) -> bool {
        !matches!(
            self.ports.as_slice(),
            [PortSpec {
                name: None,
                console: true
            }]
        )
    }

    /// Makes the device; `backends` has one entry per port.
    pub fn build(&self, backends: Vec<Box<dyn PortBackend>>) -> Result<Console, DeviceError> {
        let invalid = |reason: String| {
            Err(DeviceError::InvalidSpec {
                device: NAME,
                reason,
            })
        };
        let count = self.ports.len();
        if count == 0 || count > MAX_PORTS || backends.len() != count {
            return invalid(format!(
                "{count} ports with {} backends; give 1 to {MAX_PORTS} ports and as many backends",
                backends.len()
            ));
        }
        for name in self.ports.iter().filter_map(|port| port.name.as_ref()) {
            if name.is_empty() || name.len() > 64 || name.contains(['/', '\0']) {
                return invalid(format!(
                    "'{name}' is no port name; use 1 to 64 bytes without '/'"
                ));
            }
        }
        let multiport = self.is_multiport();
        let ports = self
            .ports
            .iter()
            .zip(backends)
            .map(|(spec, backend)| Port::new(spec.name.clone(), spec.console, backend))
            .collect();
        let shared = Arc::new(Shared {
            size: AtomicU32::new(pack(self.size)),
            queues: Arc::default(),
        });
        let queues = if multiport { 2 * count + 2 } else { 2 };
        let handler = ConsoleHandler {
            shared: shared.clone(),
            ports,
            multiport: false,
        };
        let worker = Worker::spawn(NAME, "virtio-console".into(), queues, handler)?;
        worker
            .call(ConsoleHandler::watch)?
            .map_err(|source| DeviceError::Host {
                device: NAME,
                operation: "watching a port's descriptor",
                source,
            })?;
        Ok(Console {
            worker: Arc::new(worker),
            shared,
            multiport,
            ports: count,
            queue_sizes: vec![QUEUE_SIZE; queues],
        })
    }
}

struct Shared {
    /// Columns in the upper half, rows in the lower.
    size: AtomicU32,
    queues: Arc<QueueCounters>,
}

fn pack((columns, rows): (u16, u16)) -> u32 {
    u32::from(columns) << 16 | u32::from(rows)
}

impl Shared {
    fn size(&self) -> (u16, u16) {
        let size = self.size.load(Ordering::Acquire);
        ((size >> 16) as u16, size as u16)
    }
}

/// The console device.
pub struct Console {
    worker: Arc<Worker<ConsoleHandler>>,
    shared: Arc<Shared>,
    multiport: bool,
    ports: usize,
    queue_sizes: Vec<u16>,
}

impl Console {
    /// The way to steer it.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle {
            worker: Arc::downgrade(&self.worker),
            shared: self.shared.clone(),
        }
    }
}

/// Steers a [`Console`]. It does not keep the device alive.
#[derive(Clone)]
pub struct ConsoleHandle {
    worker: Weak<Worker<ConsoleHandler>>,
    shared: Arc<Shared>,
}

impl ConsoleHandle {
    /// The terminal's size changed.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.shared
            .size
            .store(pack((columns, rows)), Ordering::Release);
        let worker = self.worker.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        worker.post(|handler, context| handler.resized(context));
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    size: (u16, u16),
    /// Per port: open in the guest, bytes of the next chain already written,
    /// messages not sent yet.
    ports: Vec<(bool, u64, Owed)>,
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        F_SIZE | if self.multiport { F_MULTIPORT } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn set_features(&mut self, features: u64) {
        let multiport = features & F_MULTIPORT != 0;
        if let Err(error) = self.worker.call(move |handler, _| {
            handler.multiport = multiport;
            if let (false, Some(port)) = (multiport, handler.ports.first_mut()) {
                // Without control messages the only port is always open.
                port.set_guest_open(true);
            }
        }) {
            tracing::error!(%error, "setting features");
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let (columns, rows) = self.shared.size();
        let mut config = [0; 8];
        config[..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        config[4..].copy_from_slice(&(self.ports as u32).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let queue = Virtqueue::for_device(
            NAME,
            &self.queue_sizes,
            index,
            resources,
            &self.shared.queues,
        )?;
        self.worker.start_queue(queue)
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, DeviceError> {
        self.worker.stop_queue(index)
    }

    fn reset(&mut self) {
        if let Err(error) = self.worker.call(|handler, _| {
            handler.multiport = false;
            handler.ports.iter_mut().for_each(Port::reset);
        }) {
            tracing::error!(%error, "resetting");
        }
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let ports = self.worker.call(|handler, _| {
            let state = |port: &Port| (port.guest_open, port.transmitted, port.owed);
            handler.ports.iter().map(state).collect()
        })?;
        let state = State {
            size: self.shared.size(),
            ports,
        };
        DeviceState::encode(DeviceType::Console, STATE_VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: State = state.decode(DeviceType::Console, STATE_VERSION)?;
        if state.ports.len() != self.ports {
            let reason = format!(
                "it has {} ports, this device has {}",
                state.ports.len(),
                self.ports
            );
            return Err(StateError::invalid(NAME, reason).into());
        }
        // The terminal here may have another size than the one there had.
        self.worker.call(move |handler, _| {
            for (port, (open, transmitted, owed)) in handler.ports.iter_mut().zip(state.ports) {
                port.set_guest_open(open);
                port.transmitted = transmitted;
                port.owed = owed;
                port.owed.resize |= port.is_console;
                port.owed.open |= !port.is_console;
            }
        })
    }

    fn counters(&self) -> Vec<favo_accel::EventCounter> {
        self.shared.queues.event_counters()
    }
}

struct ConsoleHandler {
    shared: Arc<Shared>,
    ports: Vec<Port>,
    /// `VIRTIO_CONSOLE_F_MULTIPORT` was negotiated.
    multiport: bool,
}

/// The queues of port `port`: to the guest, from the guest (5.3.2).
fn port_queues(port: usize) -> (u16, u16) {
    let first = if port == 0 { 0 } else { 2 + 2 * port as u16 };
    (first, first + 1)
}

/// The port a queue belongs to; the two control queues belong to none.
fn queue_port(index: u16) -> Option<usize> {
    match index {
        0 | 1 => Some(0),
        CONTROL_TO_GUEST | CONTROL_FROM_GUEST => None,
        _ => Some(usize::from(index) / 2 - 1),
    }
}

impl ConsoleHandler {
    fn watch(&mut self, context: &mut Context) -> io::Result<()> {
        for (number, port) in (0u64..).zip(&mut self.ports) {
            port.watch(2 * number, context)?;
        }
        Ok(())
    }

    fn resized(&mut self, context: &mut Context) {
        if !self.multiport {
            if let Some(queue) = context.queue(0) {
                queue.interrupt().signal_config();
            }
            return;
        }
        for port in &mut self.ports {
            port.owed.resize |= port.is_console;
        }
        self.send_control(context);
    }

    fn receive(&mut self, number: usize, context: &mut Context) {
        let index = port_queues(number).0;
        let (Some(port), Some(queue)) = (self.ports.get_mut(number), context.queue(index)) else {
            return;
        };
        let progress = port.receive(queue);
        queue.signal();
        if progress == Progress::More {
            context.request(index);
        }
        self.send_control(context);
    }

    fn transmit(&mut self, number: usize, context: &mut Context) {
        let index = port_queues(number).1;
        let (Some(port), Some(queue)) = (self.ports.get_mut(number), context.queue(index)) else {
            return;
        };
        let progress = port.transmit(queue);
        queue.signal();
        if progress == Progress::More {
            context.request(index);
        }
    }

    fn receive_control(&mut self, context: &mut Context) {
        let mut more = true;
        for _ in 0..MESSAGES_PER_STEP {
            let Some(queue) = context.queue(CONTROL_FROM_GUEST) else {
                return;
            };
            let Some(chain) = queue.pop() else {
                more = false;
                break;
            };
            let mut bytes = [0; 8];
            let got = read_segments(queue.memory(), chain.readable(), 0, &mut bytes);
            queue.add_used(chain, 0);
            match Control::from_bytes(&bytes).filter(|_| got == bytes.len()) {
                Some(message) => self.handle_control(&message, context),
                None => self.shared.queues.count_malformed(),
            }
        }
        if let Some(queue) = context.queue(CONTROL_FROM_GUEST) {
            queue.signal();
        }
        if more {
            context.request(CONTROL_FROM_GUEST);
        }
        self.send_control(context);
    }

    fn handle_control(&mut self, message: &Control, context: &mut Context) {
        if message.event == Event::DeviceReady {
            for port in &mut self.ports {
                port.owed.add = message.value == 1;
            }
            return;
        }
        let number = message.id as usize;
        let Some(port) = self.ports.get_mut(number) else {
            self.shared.queues.count_malformed();
            return;
        };
        match message.event {
            Event::PortReady if message.value == 1 => {
                port.owed = Owed {
                    add: false,
                    console: port.is_console,
                    resize: port.is_console,
                    name: port.name.is_some(),
                    open: true,
                };
            }
            Event::PortOpen => {
                port.set_guest_open(message.value == 1);
                context.request(port_queues(number).0);
            }
            _ => {}
        }
    }

    fn send_control(&mut self, context: &mut Context) {
        if !self.multiport {
            return;
        }
        let Some(queue) = context.queue(CONTROL_TO_GUEST) else {
            return;
        };
        let size = self.shared.size();
        'ports: for (id, port) in (0u32..).zip(&mut self.ports) {
            while let Some(message) = port.next_control(id, size) {
                let Some(chain) = queue.pop() else {
                    break 'ports;
                };
                let bytes = message.to_bytes();
                let written = write_segments(queue.memory(), chain.writable(), 0, &bytes);
                if written < bytes.len() {
                    self.shared.queues.count_malformed();
                }
                queue.add_used(chain, written as u32);
                port.control_sent(message.event);
            }
        }
        queue.signal();
    }
}

impl Handler for ConsoleHandler {
    fn serve(&mut self, index: u16, context: &mut Context) {
        match (index, queue_port(index)) {
            (CONTROL_TO_GUEST, _) => self.send_control(context),
            (CONTROL_FROM_GUEST, _) => self.receive_control(context),
            (_, Some(port)) if index.is_multiple_of(2) => self.receive(port, context),
            (_, Some(port)) => self.transmit(port, context),
            _ => {}
        }
    }

    fn ready(&mut self, token: u64, readiness: Readiness, context: &mut Context) {
        let number = (token / 2) as usize;
        let Some(port) = self.ports.get_mut(number) else {
            return;
        };
        let gone = readiness.hangup || readiness.read_closed;
        if token.is_multiple_of(2) && (readiness.readable || gone) {
            port.set_readable();
            self.receive(number, context);
        } else if !token.is_multiple_of(2) && (readiness.writable || gone) {
            port.set_writable();
            self.transmit(number, context);
        }
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod test;
