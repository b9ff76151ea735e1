use std::sync::Arc;
use std::time::Instant;

use super::*;

#[test]
fn nothing_raised_is_lost_by_a_sleeper() {
    let mailbox = Arc::new(Mailbox::default());
    let sender = mailbox.clone();
    const ROUNDS: u32 = 20_000;
    let thread = std::thread::spawn(move || {
        for round in 0..ROUNDS {
            sender.interrupt((32 + round % 200) as u8, round % 2 == 0);
            while sender.attention().load(Ordering::SeqCst) != 0 {
                std::hint::spin_loop();
            }
        }
    });
    let mut seen = 0;
    let start = Instant::now();
    while seen < ROUNDS {
        mailbox.sleep(Some(Duration::from_secs(60)));
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "lost after {seen}"
        );
        mailbox.take_interrupts(|vector, level| {
            assert_eq!(u32::from(vector), 32 + seen % 200);
            assert_eq!(level, seen % 2 == 0);
            seen += 1;
        });
        mailbox.take(attention::INTERRUPT);
    }
    thread.join().unwrap();
}

#[test]
fn addresses_in_every_mode() {
    use crate::apic::base::{ENABLE, X2APIC};
    let mailbox = Mailbox::default();
    assert!(!mailbox.is_addressed(1, 1, false), "disabled");
    mailbox.publish(ENABLE, 0x0200_0000, 0xffff_ffff);
    assert!(mailbox.is_addressed(1, 1, false));
    assert!(!mailbox.is_addressed(1, 2, false));
    assert!(mailbox.is_addressed(1, 0xff, false));
    assert!(mailbox.is_addressed(1, 0x03, true));
    assert!(!mailbox.is_addressed(1, 0x04, true));
    mailbox.publish(ENABLE, 0x1200_0000, 0x0fff_ffff);
    assert!(mailbox.is_addressed(1, 0x13, true));
    assert!(!mailbox.is_addressed(1, 0x23, true));
    mailbox.publish(ENABLE | X2APIC, 1 << 16 | 2, 0);
    assert!(mailbox.is_addressed(17, 1 << 16 | 6, true));
    assert!(!mailbox.is_addressed(17, 2, true));
    assert!(mailbox.is_addressed(17, u32::MAX, false));
    assert!(mailbox.is_addressed(17, 17, false));
}
