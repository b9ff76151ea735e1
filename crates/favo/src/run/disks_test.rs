use super::*;

#[test]
fn a_disk_is_a_file_and_maybe_read_only() {
    let disk: DiskArgument = "/a,b.img,ro".parse().unwrap();
    assert_eq!(disk.file, PathBuf::from("/a,b.img"));
    assert!(!disk.is_writable());
    assert!("x.img".parse::<DiskArgument>().unwrap().is_writable());
    assert!(",ro".parse::<DiskArgument>().is_err());
}

#[test]
fn the_format_follows_the_name_or_is_said() {
    let format = |text: &str| text.parse::<DiskArgument>().unwrap().format;
    assert_eq!(format("x.img"), Format::Raw);
    assert_eq!(format("x.qcow2,ro"), Format::Qcow2);
    assert_eq!(format("x.qcow2,format=raw,ro"), Format::Raw);
    assert_eq!(format("x,format=qcow2"), Format::Qcow2);
}
