use proptest::prelude::*;

use super::*;
use crate::interrupt::recorder::MsiRecorder;

const ON: u16 = CONTROL_ENABLE;

fn msix(vectors: u16) -> (Arc<Msix>, Arc<MsiRecorder>) {
    let sender = MsiRecorder::new();
    (Msix::new(vectors, sender.clone()), sender)
}

/// Programs a vector as a driver does, and unmasks it.
fn program(msix: &Msix, vector: u64, data: u32) -> Msi {
    let entry = vector * ENTRY_BYTES;
    msix.write_table(entry, AccessSize::Dword, 0xfee0_1000);
    msix.write_table(entry + 4, AccessSize::Dword, 0);
    msix.write_table(entry + 8, AccessSize::Dword, u64::from(data));
    msix.write_table(entry + 12, AccessSize::Dword, 0);
    Msi {
        address: 0xfee0_1000,
        data,
    }
}

#[test]
fn a_signal_sends_the_programmed_message() {
    let (msix, sent) = msix(3);
    let message = program(&msix, 2, 0x41);
    msix.signal(2);
    assert_eq!(sent.take(), [], "MSI-X is off");
    msix.set_control(ON);
    assert_eq!(sent.take(), [], "signals while it is off are lost");
    msix.signal(2);
    msix.signal(2);
    assert_eq!(sent.take(), [message, message]);
    msix.signal(3);
    msix.signal(u16::MAX);
    assert_eq!(sent.take(), []);
}

#[test]
fn a_masked_vector_is_sent_once_when_it_is_unmasked() {
    let (msix, sent) = msix(70);
    let message = program(&msix, 65, 0x99);
    msix.set_control(ON);
    msix.write_table(65 * 16 + 12, AccessSize::Dword, 1);
    msix.signal(65);
    msix.signal(65);
    assert_eq!(sent.take(), []);
    assert_eq!(msix.read_pending(8, AccessSize::Qword), 1 << 1);
    assert_eq!(msix.read_pending(0, AccessSize::Qword), 0);
    msix.write_table(65 * 16 + 12, AccessSize::Dword, 0);
    assert_eq!(sent.take(), [message]);
    assert_eq!(msix.read_pending(8, AccessSize::Qword), 0);
}

#[test]
fn the_function_mask_holds_all_back() {
    let (msix, sent) = msix(2);
    let messages = [program(&msix, 0, 1), program(&msix, 1, 2)];
    msix.set_control(ON | CONTROL_MASK);
    msix.signal(0);
    msix.signal(1);
    assert_eq!(sent.take(), []);
    assert_eq!(msix.control(), ON | CONTROL_MASK | 1);
    msix.set_control(ON);
    assert_eq!(sent.take(), messages);
}

#[test]
fn the_table_reads_back_what_was_written() {
    let (msix, _) = msix(2);
    msix.write_table(16, AccessSize::Qword, 0x0000_0001_fee0_0fff);
    msix.write_table(24, AccessSize::Qword, 0xffff_ffff_0000_4030);
    assert_eq!(msix.read_table(16, AccessSize::Qword), 0x1_fee0_0ffc);
    assert_eq!(msix.read_table(24, AccessSize::Qword), 0x1_0000_4030);
    assert_eq!(msix.read_table(17, AccessSize::Word), 0xe00f);
    // After reset every vector is masked.
    assert_eq!(msix.read_table(12, AccessSize::Dword), 1);
    // Undefined widths have no effect.
    msix.write_table(12, AccessSize::Byte, 0);
    msix.write_table(13, AccessSize::Dword, 0);
    assert_eq!(msix.read_table(12, AccessSize::Dword), 1);
}

#[test]
fn state_survives_and_is_checked() {
    let (first, _) = msix(2);
    let message = program(&first, 1, 7);
    first.set_control(ON | CONTROL_MASK);
    first.signal(1);
    let state = first.save();
    let text = serde_json::to_string(&state).unwrap();
    let state: MsixState = serde_json::from_str(&text).unwrap();

    let (second, sent) = msix(2);
    second.restore(&state).unwrap();
    assert_eq!(second.save(), first.save());
    assert_eq!(sent.take(), []);
    second.set_control(ON);
    assert_eq!(sent.take(), [message]);

    let (other, _) = msix(3);
    assert!(matches!(
        other.restore(&state),
        Err(StateError::Invalid { .. })
    ));
    for version in [0, MsixState::VERSION + 1] {
        let state = MsixState {
            version,
            ..state.clone()
        };
        assert!(matches!(
            second.restore(&state),
            Err(StateError::UnsupportedVersion { .. })
        ));
    }
}

proptest! {
    /// No access panics, and pending bits never outnumber the vectors.
    #[test]
    fn garbage_does_no_harm(
        vectors in 0u16..130,
        accesses in prop::collection::vec((any::<u8>(), any::<u16>(), 0usize..4, any::<u64>()), 0..60),
    ) {
        let (msix, _) = msix(vectors);
        for (what, offset, size, value) in accesses {
            let size = AccessSize::from_bytes(1 << size).unwrap();
            let offset = if what & 0x80 != 0 { u64::MAX - u64::from(offset & 15) } else { u64::from(offset) };
            match what & 7 {
                0 => { msix.read_table(offset, size); }
                1 => { msix.read_pending(offset, size); }
                2 => msix.set_control(value as u16),
                3 => msix.signal(value as u16),
                4 => msix.signal(value as u16 % vectors.max(1)),
                _ => msix.write_table(offset & !7, size, value),
            }
        }
        let state = msix.save();
        prop_assert_eq!(state.vectors.len(), usize::from(vectors.max(1)));
        msix.restore(&state).unwrap();
        prop_assert_eq!(msix.save(), state);
    }
}
