use proptest::prelude::*;

use super::*;

const MAC: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 2];
const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];
const BROADCAST: Mac = [0xff; 6];
const ALL: u64 = feature::CTRL_RX
    | feature::CTRL_RX_EXTRA
    | feature::CTRL_MAC_ADDR
    | feature::GUEST_ANNOUNCE
    | feature::MQ;

fn tables(unicast: &[Mac], multicast: &[Mac]) -> Vec<u8> {
    let mut command = vec![CLASS_MAC, MAC_TABLE_SET];
    for table in [unicast, multicast] {
        command.extend((table.len() as u32).to_le_bytes());
        command.extend(table.as_flattened());
    }
    command
}

#[test]
fn a_driver_receives_what_it_asked_for() {
    let mut control = Control::new(MAC);
    let everything = [MAC, OTHER, GROUP, BROADCAST];
    let received = |control: &Control| everything.map(|mac| control.wants(&mac));
    assert_eq!(received(&control), [true; 4]);
    let mut run = |command: &[u8]| {
        assert_eq!(control.execute(command, ALL, 4), Ack::Ok);
        received(&control)
    };
    assert_eq!(run(&[CLASS_RX, 0, 0]), [true, false, false, true]);
    assert_eq!(run(&[CLASS_RX, 1, 1]), [true, false, true, true]);
    assert_eq!(run(&[CLASS_RX, 2, 1]), [true, true, true, true]);
    assert_eq!(run(&[CLASS_RX, 3, 1]), [true, true, false, true]);
    assert_eq!(run(&[CLASS_RX, 4, 1]), [false, false, false, true]);
    assert_eq!(run(&[CLASS_RX, 5, 1]), [false; 4]);
    for command in 1..6 {
        run(&[CLASS_RX, command, 0]);
    }
    assert_eq!(run(&tables(&[OTHER], &[GROUP])), [true; 4]);
    assert_eq!(run(&tables(&[], &[])), [true, false, false, true]);
    let many = vec![OTHER; MAX_TABLE + 1];
    assert_eq!(run(&tables(&many, &[])), [true, true, false, true]);
    run(&tables(&[], &[]));
    let mut command = vec![CLASS_MAC, MAC_ADDR_SET];
    command.extend(OTHER);
    assert_eq!(run(&command), [false, true, false, true]);
}

#[test]
fn queue_pairs_and_announcements() {
    let mut control = Control::new(MAC);
    for (pairs, ack) in [
        (0, Ack::Error),
        (5, Ack::Error),
        (0x400, Ack::Error),
        (4, Ack::Ok),
    ] {
        let [low, high] = u16::to_le_bytes(pairs);
        assert_eq!(
            control.execute(&[CLASS_MQ, MQ_PAIRS_SET, low, high], ALL, 4),
            ack
        );
    }
    assert_eq!(control.active_pairs, 4);
    control.announce = true;
    assert_eq!(control.execute(&[CLASS_ANNOUNCE, 0, 0], ALL, 4), Ack::Error);
    assert!(control.announce);
    assert_eq!(control.execute(&[CLASS_ANNOUNCE, 0], ALL, 4), Ack::Ok);
    assert!(!control.announce);
}

#[test]
fn what_is_malformed_or_not_negotiated_changes_nothing() {
    let mut group = vec![CLASS_MAC, MAC_ADDR_SET];
    group.extend(GROUP);
    let mut cut = tables(&[OTHER], &[]);
    cut.pop();
    let mut huge = vec![CLASS_MAC, MAC_TABLE_SET];
    huge.extend([0xff; 40]);
    for command in [
        &[][..],
        &[CLASS_RX],
        &[CLASS_RX, 0],
        &[CLASS_RX, 0, 2],
        &[CLASS_RX, 6, 1],
        &[CLASS_RX, 0, 1, 1],
        &[2, 0, 0, 0],
        &[5, 0, 0, 0],
        &group,
        &cut,
        &huge,
        &[CLASS_MQ, 1, 1, 0],
    ] {
        let mut control = Control::new(MAC);
        assert_eq!(control.execute(command, ALL, 4), Ack::Error, "{command:?}");
        assert_eq!(control, Control::new(MAC));
    }
    let right = [
        vec![CLASS_RX, 0, 0],
        vec![CLASS_RX, 3, 0],
        tables(&[], &[]),
        vec![CLASS_MAC, MAC_ADDR_SET, 2, 0, 0, 0, 0, 9],
        vec![CLASS_ANNOUNCE, 0],
        vec![CLASS_MQ, 0, 1, 0],
    ];
    for command in right {
        let mut control = Control::new(MAC);
        assert_eq!(control.execute(&command, 0, 4), Ack::Error, "{command:?}");
        assert_eq!(control, Control::new(MAC));
        assert_eq!(control.execute(&command, ALL, 4), Ack::Ok, "{command:?}");
    }
}

proptest! {
    #[test]
    fn any_commands_leave_a_possible_state(
        commands in prop::collection::vec(
            (0u8..6, 0u8..7, prop::collection::vec(any::<u8>(), 0..40)),
            0..50,
        ),
    ) {
        let mut control = Control::new(MAC);
        for (class, code, data) in commands {
            let mut command = vec![class, code];
            command.extend(data);
            control.execute(&command, ALL, 3);
            prop_assert!(control.is_plausible(3));
        }
    }
}
