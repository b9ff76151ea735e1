use super::*;
use proptest::prelude::*;

#[test]
fn nothing_said_is_the_default() {
    let options = Options::parse("console=ttyS0 quiet root=/dev/sda1 ro\n").unwrap();
    assert_eq!(options, Options::default());
}

#[test]
fn all_parameters_are_taken() {
    let options = Options::parse(
        "favo.mode=run favo.root=/dev/vdb1 favo.rootfstype=xfs favo.rootflags=\"a,b c\" favo.ro \
         favo.timeout=5 favo.port=77 \"favo.hostname=alpha\" favo.init=/bin/sh favo.stay",
    )
    .unwrap();
    assert_eq!(options.mode, Mode::Run);
    assert_eq!(options.root, "/dev/vdb1");
    assert_eq!(options.root_type, "xfs");
    assert_eq!(options.root_flags, "a,b c");
    assert!(options.read_only);
    assert_eq!(options.root_timeout, Duration::from_secs(5));
    assert_eq!(options.port, 77);
    assert_eq!(options.hostname.as_deref(), Some("alpha"));
    assert_eq!(options.init.as_deref(), Some("/bin/sh"));
    assert!(options.stay);
}

#[test]
fn what_cannot_be_followed_is_named() {
    for bad in [
        "favo.mode=fly",
        "favo.root=vda",
        "favo.timeout=soon",
        "favo.port=70000000000",
        "favo.prot=1",
    ] {
        let error = Options::parse(bad).unwrap_err().to_string();
        assert!(error.starts_with(bad), "{error}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        run in any::<bool>(), read_only in any::<bool>(), seconds in any::<u32>(),
        port in any::<u32>(), root in "/dev/[a-z0-9/]{0,9}", root_type in "[a-z0-9]{1,5}",
        root_flags in "[a-z=, ]{0,9}", hostname in proptest::option::of("[a-z0-9.-]{1,9}"),
    ) {
        let options = Options {
            mode: if run { Mode::Run } else { Mode::Boot },
            root_timeout: Duration::from_secs(seconds.into()),
            read_only, port, root, root_type, root_flags, hostname,
            init: None,
            stay: run,
        };
        prop_assert_eq!(Options::parse(&options.to_string()), Ok(options));
    }

    #[test]
    fn any_line_is_read_or_refused(line in ".*") {
        let _ = Options::parse(&line);
    }
}
