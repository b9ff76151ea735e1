//! What virtio-net's header promises, kept and not.

use super::*;

pub(super) fn cases() -> Vec<Case> {
    use DropReason as R;
    use Origin::Guest;
    use Verdict::Drop;
    let promise = |start, offset, segmentation| Offload {
        checksum: Some(PartialChecksum { start, offset }),
        segmentation,
        checked: false,
    };
    let cut = |kind| {
        Some(Segmentation {
            kind,
            size: 1448,
            header: 54,
        })
    };
    let large = changed(web(TO_GATEWAY, OUT_4), |f| {
        f.resize(60_000, 0);
        f[16..18].copy_from_slice(&(60_000u16 - 14).to_be_bytes());
        sign(f);
    });
    let offloaded = |name, frame: &Vec<u8>, offload, verdict| Case {
        name,
        origin: Guest,
        frame: frame.clone(),
        offload,
        verdict,
    };
    let wrong = changed(web(TO_GATEWAY, OUT_4), |f| f[50] ^= 1);
    vec![
        offloaded(
            "partial checksum",
            &wrong,
            promise(34, 16, None),
            Verdict::Uplink,
        ),
        offloaded(
            "partial checksum elsewhere",
            &wrong,
            promise(35, 16, None),
            Drop(R::BadOffload),
        ),
        offloaded(
            "partial checksum of udp",
            &wrong,
            promise(34, 6, None),
            Drop(R::BadOffload),
        ),
        offloaded(
            "to be cut",
            &large,
            promise(34, 16, cut(SegmentKind::Tcp4)),
            Verdict::Uplink,
        ),
        offloaded(
            "to be cut as v6",
            &large,
            promise(34, 16, cut(SegmentKind::Tcp6)),
            Drop(R::BadOffload),
        ),
        offloaded(
            "to be cut as udp",
            &large,
            promise(34, 16, cut(SegmentKind::Udp)),
            Drop(R::BadOffload),
        ),
        offloaded(
            "not to be cut",
            &large,
            promise(34, 16, None),
            Drop(R::TooLong),
        ),
    ]
}
