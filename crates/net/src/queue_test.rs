use rustix::event::{PollFd, PollFlags, poll};

use super::*;

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(
        &mut fds,
        Some(&rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .unwrap()
        == 1
}

fn pair() -> (PortLink, PortLink) {
    let (a, b) = (
        Arc::new(Queue::new().unwrap()),
        Arc::new(Queue::new().unwrap()),
    );
    (PortLink::new(a.clone(), b.clone()), PortLink::new(b, a))
}

#[test]
fn frames_arrive_in_order_and_whole() {
    let (mut here, mut there) = pair();
    let mut frame = Vec::new();
    assert!(there.receive(&mut frame).is_none());
    for round in 0..3u8 {
        for length in 0..50usize {
            here.send(
                &vec![round; length],
                Offload {
                    checked: length % 2 == 0,
                    ..Default::default()
                },
            );
        }
        assert!(
            !is_readable(there.ready()),
            "before the batch ends nothing is said"
        );
        here.flush();
        for length in 0..50usize {
            assert!(is_readable(there.ready()));
            frame.clear();
            let offload = there.receive(&mut frame).unwrap();
            assert_eq!(frame, vec![round; length]);
            assert_eq!(offload.checked, length % 2 == 0);
        }
        assert!(there.receive(&mut frame).is_none());
        assert!(!is_readable(there.ready()));
    }
}

#[test]
fn a_flood_is_dropped_and_counted() {
    let (mut here, mut there) = pair();
    let sent = 3 * MAXIMUM_BYTES / 1000;
    for _ in 0..sent {
        here.send(&[7; 1000], Offload::default());
        here.flush();
    }
    assert!(here.to_plane.lock().bytes.len() <= MAXIMUM_BYTES);
    let mut received = 0;
    let mut frame = Vec::new();
    while there.receive(&mut frame).is_some() {
        received += 1;
        frame.clear();
    }
    assert_eq!(received + here.to_plane.dropped() as usize, sent);
    assert!(received > 0 && received < sent);
}

#[test]
fn a_receiver_that_takes_nothing_gets_nothing_and_it_is_counted() {
    let queue = Queue::new().unwrap();
    let mut batch = Batch::default();
    let mut put = |count: usize| {
        for _ in 0..count {
            batch.push([&[1; 60], &[]], Offload::default());
        }
        queue.put(&mut batch);
        assert!(batch.is_empty());
    };
    put(2);
    queue.set_active(false);
    assert!(!queue.is_active());
    put(3);
    assert_eq!(queue.refused(), 5);
    let mut taken = Batch::default();
    assert!(!queue.take(&mut taken), "nothing is left from before");
    queue.set_active(true);
    put(1);
    assert!(is_readable(queue.ready()));
    assert!(queue.take(&mut taken));
    assert_eq!((taken.frames_mut().count(), queue.refused()), (1, 5));
}
